package driver

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"
)

// TestServiceAccountTokens: what kubelet adds for an inline volume is what registries are
// asked with, and is kept nowhere.
func TestServiceAccountTokens(t *testing.T) {
	p := newPlugin(t)
	req := p.inlineRequest("csi-1", "pod")
	text, err := json.Marshal(map[string]authenticationv1.TokenRequestStatus{ // as kubelet does
		"registry": {Token: "hunter22-one"}, "": {Token: "hunter22-two"},
	})
	if err != nil {
		t.Fatal(err)
	}
	req.VolumeContext[keyTokens] = string(text)
	if _, err := p.NodePublishVolume(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"registry": "hunter22-one", "": "hunter22-two"}
	if got := p.store.tokens; len(got) != 1 || !maps.Equal(got[0], want) {
		t.Errorf("tokens %q, want %q", got, want)
	}
	if record, err := os.ReadFile(p.manager.saved.file("csi-1")); err != nil || strings.Contains(string(record), "hunter22") {
		t.Errorf("record %s, %v: must hold no token", record, err)
	}
	if err := p.unpublish("csi-1", "pod"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{`"hunter22"`, `{"registry": "hunter22"}`, `{"registry": {"token": ["hunter22"]}}`, "hunter22"} {
		req.VolumeContext[keyTokens] = bad
		_, err := p.NodePublishVolume(context.Background(), req)
		wantCode(t, err, codes.InvalidArgument, keyTokens)
		if strings.Contains(err.Error(), "hunter22") {
			t.Errorf("the error tells a token: %v", err)
		}
	}
	p.checkClean(t)
}
