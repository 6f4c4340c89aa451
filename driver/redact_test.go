package driver

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

func TestRedaction(t *testing.T) {
	stage := &csi.NodeStageVolumeRequest{
		VolumeId:      "v",
		Secrets:       map[string]string{secretKey: "hunter2"},
		VolumeContext: map[string]string{"image": "r/a", keyTokens: "hunter2"},
	}
	before := proto.Clone(stage)
	got := redacted{stage}.String()
	if strings.Contains(got, "hunter2") {
		t.Errorf("%s tells a secret", got)
	}
	for _, want := range []string{`"v"`, secretKey, redactedText, `"r/a"`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s does not say %s", got, want)
		}
	}
	if !proto.Equal(stage, before) {
		t.Error("the message itself was changed")
	}
	if got := (redacted{"hunter2"}).String(); strings.Contains(got, "hunter2") {
		t.Errorf("what is no message is printed: %s", got)
	}
}

// TestRedactionOfEveryMarkedField puts a secret into every field of every CSI
// message that the specification marks.
func TestRedactionOfEveryMarkedField(t *testing.T) {
	marked := 0
	messages := csi.File_csi_proto.Messages()
	for i := range messages.Len() {
		descriptor := messages.Get(i)
		for j := range descriptor.Fields().Len() {
			field := descriptor.Fields().Get(j)
			if !isSecret(field) {
				continue
			}
			marked++
			m := newMessage(t, descriptor)
			if !field.IsMap() {
				t.Fatalf("%s is no map", field.FullName())
			}
			entries := m.Mutable(field).Map()
			entries.Set(protoreflect.ValueOfString("password").MapKey(), protoreflect.ValueOfString("hunter2"))
			if got := (redacted{m.Interface()}).String(); strings.Contains(got, "hunter2") || !strings.Contains(got, redactedText) {
				t.Errorf("%s: %s", field.FullName(), got)
			}
		}
	}
	if marked < 10 {
		t.Errorf("only %d marked fields were found", marked)
	}
}

func newMessage(t *testing.T, d protoreflect.MessageDescriptor) protoreflect.Message {
	t.Helper()
	messageType, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return messageType.New()
}
