package driver

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// redactedText stands for a secret value in the log.
const redactedText = "***redacted***"

// secretMapKeys are secrets in maps that are not marked as such.
var secretMapKeys = []string{keyTokens}

// redacted prints a message without its secrets, when it is printed at all.
type redacted struct{ message any }

// String returns the message as JSON. Secret are the fields that the CSI
// specification marks with the option csi_secret, and service account tokens
// in a volume context. The keys of secret maps stay, the values do not.
func (r redacted) String() string {
	m, ok := r.message.(proto.Message)
	if !ok || m == nil {
		return "not a message"
	}
	m = proto.Clone(m)
	redact(m.ProtoReflect())
	b, err := protojson.MarshalOptions{}.Marshal(m)
	if err != nil {
		// Never the message itself: what failed may be the redaction.
		return "message that cannot be printed"
	}
	return string(b)
}

// redact replaces the secrets of m, at any depth. The depth is that of the
// CSI messages' types, which are not recursive.
func redact(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		secret := isSecret(field)
		switch {
		case field.IsMap():
			redactMap(value.Map(), field, secret)
		case secret:
			// Only maps are marked today; anything else goes as a whole.
			m.Clear(field)
		case field.IsList() && field.Message() != nil:
			for i := range value.List().Len() {
				redact(value.List().Get(i).Message())
			}
		case field.Message() != nil:
			redact(value.Message())
		}
		return true
	})
}

func redactMap(entries protoreflect.Map, field protoreflect.FieldDescriptor, secret bool) {
	isText := field.MapValue().Kind() == protoreflect.StringKind
	entries.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		switch {
		case (secret || slices.Contains(secretMapKeys, key.String())) && isText:
			entries.Set(key, protoreflect.ValueOfString(redactedText))
		case secret:
			entries.Clear(key)
		case field.MapValue().Message() != nil:
			redact(value.Message())
		}
		return true
	})
}

func isSecret(field protoreflect.FieldDescriptor) bool {
	secret, ok := proto.GetExtension(field.Options(), csi.E_CsiSecret).(bool)
	return ok && secret
}
