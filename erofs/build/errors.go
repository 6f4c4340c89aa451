package build

import (
	"fmt"
	"strconv"
	"unicode"
)

// EntryError says which entry of which layer an error is about.
type EntryError struct {
	Layer string
	Path  string // as the layer names it
	Err   error
}

func (e *EntryError) Error() string {
	return fmt.Sprintf("layer %s, entry %s: %v", e.Layer, shown(e.Path), e.Err)
}

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

func (b *Builder) entryError(path string, err error) error {
	return &EntryError{Layer: b.layer, Path: path, Err: err}
}

// layerError is about no entry.
func (b *Builder) layerError(err error) error { return fmt.Errorf("layer %s: %w", b.layer, err) }

// malformed says what is wrong with an entry.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrLayer}, args...)...)
}

func beyond(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrLimit}, args...)...)
}

// shown quotes a path, the end of it if it is long.
func shown(path string) string {
	const most = 200
	if len(path) > most {
		return "..." + strconv.QuoteToASCII(path[len(path)-most:])
	}
	for _, c := range path {
		if !unicode.IsPrint(c) {
			return strconv.QuoteToASCII(path)
		}
	}
	return strconv.Quote(path)
}
