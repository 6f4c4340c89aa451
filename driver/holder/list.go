package holder

import (
	"context"
)

// Listing is what a holder keeps under a name.
type Listing struct {
	Name string `json:"name"`
	// Claimed tells whether a client has the name, PID which process that is; 0: it
	// is in a PID namespace that the holder does not see.
	Claimed bool         `json:"claimed"`
	PID     int          `json:"pid"`
	Items   []ListedItem `json:"items"`
}

// ListedItem is an item without what is kept.
type ListedItem struct {
	Key         string `json:"key"`
	Descriptors int    `json:"descriptors"`
	MetaBytes   int    `json:"metaBytes"`
}

// List tells what the holder at path keeps, by names and keys in their order. It claims
// no name. What changes meanwhile may be in it or not.
func List(ctx context.Context, path string) ([]Listing, error) {
	s, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var names []Listing
	for at := (&message{}); ; {
		r, err := s.ask(ctx, &message{kind: kindList, name: at.name, key: at.key}, kindEntry)
		if err != nil || r.kind == kindEnd {
			return names, err
		}
		if r.name < at.name || r.name == at.name && r.key <= at.key {
			return nil, s.broken("%q of %q comes after %q of %q", r.key, r.name, at.key, at.name)
		}
		at = &r.message
		if len(names) == 0 || names[len(names)-1].Name != r.name {
			names = append(names, Listing{Name: r.name, Claimed: r.claimed == 1, PID: int(r.pid), Items: []ListedItem{}})
		}
		if r.key != "" {
			last := &names[len(names)-1]
			last.Items = append(last.Items, ListedItem{Key: r.key, Descriptors: int(r.files), MetaBytes: int(r.size)})
		}
	}
}
