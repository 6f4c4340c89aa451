package nodecache

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// tokenServer gives out tokens that docker-registry checks against its
// certificate: to user with password, to the identity token, and, for the
// repositories below "public/", to anybody.
type tokenServer struct {
	server                   *httptest.Server
	key                      *ecdsa.PrivateKey
	cert                     []byte // DER
	user, password, identity string
	status                   atomic.Int64 // answer this instead, if not 0
	asked                    atomic.Int64
}

const (
	tokenService = "test-registry"
	tokenIssuer  = "test-issuer"
)

func newTokenServer(t testing.TB) *tokenServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: tokenIssuer},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	s := &tokenServer{key: key, cert: cert, user: "user", password: "hunter22", identity: "identity-hunter22"}
	s.server = httptest.NewServer(s)
	t.Cleanup(s.server.Close)
	return s
}

// config is the auth section of a docker-registry that trusts the server.
func (s *tokenServer) config(t testing.TB, dir string) string {
	t.Helper()
	bundle := writeFile(t, dir+"/bundle.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert}))
	return fmt.Sprintf("auth: {token: {realm: %q, service: %s, issuer: %s, rootcertbundle: %s}}\n", s.server.URL+"/token", tokenService, tokenIssuer, bundle)
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	if status := s.status.Load(); status != 0 {
		w.WriteHeader(int(status))
		return
	}
	if err := r.ParseForm(); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	known := false
	if r.Method == http.MethodPost {
		known = r.PostForm.Get("grant_type") == "refresh_token" && r.PostForm.Get("refresh_token") == s.identity
		if !known {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	} else if user, password, ok := r.BasicAuth(); ok {
		if known = user == s.user && password == s.password; !known {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	}
	var scopes []string
	for _, list := range r.Form["scope"] {
		scopes = append(scopes, strings.Fields(list)...)
	}
	token := s.token(known, scopes)
	_ = json.NewEncoder(w).Encode(map[string]string{"token": token, "access_token": token})
}

// token grants the scopes (repository:<name>:<action>,<action>) to somebody
// known, or what is public.
func (s *tokenServer) token(known bool, scopes []string) string {
	access := []map[string]any{}
	for _, scope := range scopes {
		part := strings.SplitN(scope, ":", 3)
		if len(part) == 3 && (known || strings.HasPrefix(part[1], "public/")) {
			access = append(access, map[string]any{"type": part[0], "name": part[1], "actions": strings.Split(part[2], ",")})
		}
	}
	encode := func(v any) string {
		text, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(text)
	}
	now := time.Now().Unix()
	signed := encode(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}}) + "." +
		encode(map[string]any{
			"iss": tokenIssuer, "sub": s.user, "aud": tokenService,
			"iat": now, "nbf": now - 60, "exp": now + 300, "jti": fmt.Sprint(now), "access": access,
		})
	sum := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return ""
	}
	var sig [64]byte
	a.FillBytes(sig[:32])
	b.FillBytes(sig[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig[:])
}
