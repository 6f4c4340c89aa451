package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestNoSuchImage: whoever asks for an image that does not exist reads so in an event.
func TestNoSuchImage(t *testing.T) {
	r := suite
	none := r.ref("none", "v1")
	t.Run("claim", func(t *testing.T) {
		class := r.class(t, "none", nil)
		c := r.claim(t, "none", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.StorageClassName = &class
			c.Annotations = map[string]string{imageAnnotation: none}
		})
		r.wantEvent(t, c.UID, "ProvisioningFailed", "NotFound", none)
	})
	t.Run("inline", func(t *testing.T) {
		p := r.create(t, r.newPod("none", inline(map[string]string{"image": none})))
		r.wantEvent(t, p.UID, "FailedMount", "NotFound", none)
	})
	t.Run("static", func(t *testing.T) {
		c := r.static(t, "none-static", map[string]string{"image": none}, nil)
		p := r.create(t, r.newPod("none-static", claimed(c)))
		r.wantEvent(t, p.UID, "FailedMount", "NotFound", none)
	})
	t.Run("unknown attribute", func(t *testing.T) {
		p := r.create(t, r.newPod("unknown", inline(map[string]string{"image": r.v1.ref, "domain": "d"})))
		r.wantEvent(t, p.UID, "FailedMount", "InvalidArgument", "domain")
	})
}

// TestPullSecret: a private registry's image is read with the right secret by each kind of
// volume, and with a wrong one or none by no inline volume, though the node has it.
func TestPullSecret(t *testing.T) {
	r := suite
	if r.private == nil {
		t.Fatal("this test needs E2E_PRIVATE_REGISTRY: see README.md, or leave it out by -skip TestPullSecret")
	}
	ref := r.private.ref(r, r.v1.ref)
	right, wrong := r.secret(t, "right", password), r.secret(t, "wrong", "wrong")
	with := func(secret string) *corev1.VolumeSource {
		source := inline(map[string]string{"image": ref})
		if secret != "" {
			source.CSI.NodePublishSecretRef = &corev1.LocalObjectReference{Name: secret}
		}
		return source
	}
	// Wrong before right, so that nothing is there yet; and after it, too.
	for _, when := range []string{"before", "after"} {
		for name, secret := range map[string]string{"wrong": wrong, "no": ""} {
			p := r.create(t, r.newPod("inline-"+name+"-"+when, with(secret)))
			r.wantEvent(t, p.UID, "FailedMount", "Unauthenticated", r.private.host)
		}
		if when == "before" {
			let := r.private.let.Load()
			p := r.running(t, r.newPod("inline-right", with(right)))
			r.wantTree(t, p.Name, "/v", r.v1.dir)
			if r.private.let.Load() == let {
				t.Error("the private registry was not asked with the credentials")
			}
		}
	}
	t.Run("static", func(t *testing.T) {
		c := r.static(t, "private", map[string]string{"image": ref, "pullPolicy": "Always"}, &corev1.SecretReference{Namespace: r.namespace, Name: right})
		p := r.running(t, r.newPod("private", claimed(c)))
		r.wantTree(t, p.Name, "/v", r.v1.dir)
	})
	for name, secret := range map[string]string{"class": right, "class-wrong": wrong} {
		t.Run(name, func(t *testing.T) {
			class := r.class(t, name, map[string]string{
				"csi.storage.k8s.io/provisioner-secret-name": secret, "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}",
				"csi.storage.k8s.io/node-stage-secret-name": secret, "csi.storage.k8s.io/node-stage-secret-namespace": "${pvc.namespace}",
			})
			c := r.claim(t, name, func(c *corev1.PersistentVolumeClaim) {
				c.Spec.StorageClassName = &class
				c.Annotations = map[string]string{imageAnnotation: ref}
			})
			if secret == wrong {
				r.wantEvent(t, c.UID, "ProvisioningFailed", "Unauthenticated", r.private.host)
				return
			}
			pv := r.bound(t, c)
			if image := pv.Spec.CSI.VolumeAttributes["image"]; !strings.HasPrefix(image, ref+"@sha256:") {
				t.Errorf("the volume has the image %s, want %s with its digest", image, ref)
			}
			p := r.running(t, r.newPod(name, claimed(c)))
			r.wantTree(t, p.Name, "/v", r.v1.dir)
		})
	}
}

// secret makes a Secret with credentials for the private registry.
func (r *run) secret(t *testing.T, name, password string) string {
	t.Helper()
	secrets := r.client.CoreV1().Secrets(r.namespace)
	made, err := secrets.Create(t.Context(), &corev1.Secret{
		ObjectMeta: r.meta(name), Type: corev1.SecretTypeDockerConfigJson,
		StringData: map[string]string{corev1.DockerConfigJsonKey: `{"auths":{"` + r.private.host + `":{"username":"` + user + `","password":"` + password + `"}}}`},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := secrets.Delete(ctxOf(t), made.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return made.Name
}
