package driver

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestToldMessage: whatever is wrong with a volume can be sent and stands in a pod's status.
func TestToldMessage(t *testing.T) {
	for _, message := range []string{
		"", "short", "a \xff b", strings.Repeat("x", maxHealthMessage), strings.Repeat("x", maxHealthMessage+1),
		strings.Repeat("\u00e9", maxHealthMessage), "x" + strings.Repeat("\u20ac", maxHealthMessage), strings.Repeat("\xff", maxHealthMessage),
	} {
		got := told(message)
		if len(got) > maxHealthMessage || !utf8.ValidString(got) {
			t.Errorf("%d bytes, valid: %v, of %.20q", len(got), utf8.ValidString(got), message)
		}
		if utf8.ValidString(message) && len(message) <= maxHealthMessage && got != message {
			t.Errorf("%.20q became %.20q", message, got)
		}
		if len(message) > maxHealthMessage && (!strings.HasSuffix(got, "...") || len(got) < maxHealthMessage-4) {
			t.Errorf("%.20q became %d bytes, %q at the end", message, len(got), got[max(0, len(got)-8):])
		}
	}
}
