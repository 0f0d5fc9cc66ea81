package link_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
)

func pemOf(t *testing.T, typ string, der []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

func publicPEM(t *testing.T, pub any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	return pemOf(t, "PUBLIC KEY", der, err)
}

// The example of RFC 8037, appendix A.2 and A.3.
func TestThumbprintOfRFC8037(t *testing.T) {
	k, err := link.ParsePublicKey("EdDSA", []byte(`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"; k.ID != want {
		t.Fatalf("thumbprint is %s, want %s", k.ID, want)
	}
}

func TestParsePublicKey(t *testing.T) {
	for _, p := range bothPairs {
		thumb, err := link.Thumbprint(p.public())
		if err != nil {
			t.Fatal(err)
		}
		lib, err := jwk.Import(p.public()) // what a vendor's library writes
		if err != nil {
			t.Fatal(err)
		}
		plain, err := json.Marshal(lib)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]any{"kid": "acme-1", "use": "sig", "alg": p.alg, "key_ops": []string{"verify"}} {
			if err := lib.Set(k, v); err != nil {
				t.Fatal(err)
			}
		}
		full, err := json.Marshal(lib)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name, id string
			data     []byte
		}{
			{"PEM", thumb, publicPEM(t, p.public())},
			{"PEM with text around", thumb, []byte("\n\n" + string(publicPEM(t, p.public())) + "\n ")},
			{"JWK", thumb, plain},
			{"JWK with all members", "acme-1", full},
		} {
			k, err := link.ParsePublicKey(p.alg, c.data)
			if err != nil {
				t.Fatalf("%s %s: %v", p.alg, c.name, err)
			}
			if k.ID != c.id || k.Algorithm != p.alg || k.Private != nil {
				t.Errorf("%s %s: got %v", p.alg, c.name, k)
			}
			k.ID = "k1"
			tr, err := link.NewTrust(audience, link.Issuer{Name: "acme-app", Keys: []link.Key{k}})
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := tr.Verify(p.token(p.header(), goodPayload), at); err != nil {
				t.Errorf("%s %s: %v", p.alg, c.name, err)
			}
		}
	}
}

func TestParsePublicKeyRefuses(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8Ed, err := x509.MarshalPKCS8PrivateKey(edPair.ed)
	private := pemOf(t, "PRIVATE KEY", pkcs8Ed, err)
	sec1, err := x509.MarshalECPrivateKey(ecPair.ec)
	ecPrivate := pemOf(t, "EC PRIVATE KEY", sec1, err)
	edPEM, ecPEM := publicPEM(t, edPair.public()), publicPEM(t, ecPair.public())
	// The SubjectPublicKeyInfo ends with the point; a changed y leaves it.
	block, _ := pem.Decode(ecPEM)
	block.Bytes[len(block.Bytes)-1] ^= 1
	offPEM := pem.EncodeToMemory(block)
	x := b64(edPair.public().(ed25519.PublicKey))
	point, err := ecPair.ec.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	ex, ey := b64(point[1:33]), b64(point[33:])
	okp := func(more string) string { return `{"kty":"OKP","crv":"Ed25519","x":"` + x + `"` + more + `}` }

	for name, c := range map[string]struct{ alg, data, want string }{
		"unknown alg":             {"HS256", string(edPEM), "use EdDSA or ES256"},
		"alg in lower case":       {"eddsa", string(edPEM), "use EdDSA or ES256"},
		"alg none":                {"none", string(edPEM), "use EdDSA or ES256"},
		"empty":                   {"EdDSA", "", "neither PEM nor a JWK"},
		"junk":                    {"EdDSA", "ssh-ed25519 AAAA", "neither PEM nor a JWK"},
		"private PEM":             {"EdDSA", string(private), "private key"},
		"EC private PEM":          {"ES256", string(ecPrivate), "private key"},
		"private after public":    {"EdDSA", string(edPEM) + string(private), "private key"},
		"two public keys":         {"EdDSA", string(edPEM) + string(edPEM), "one key at a time"},
		"certificate":             {"EdDSA", string(pemOf(t, "CERTIFICATE", []byte{1}, nil)), "CERTIFICATE"},
		"PEM of junk":             {"EdDSA", string(pemOf(t, "PUBLIC KEY", []byte{1}, nil)), "reading the public key"},
		"RSA":                     {"ES256", string(publicPEM(t, rsaKey.Public())), "needs an ECDSA"},
		"P-384":                   {"ES256", string(publicPEM(t, p384.Public())), "P-384"},
		"Ed25519 for ES256":       {"ES256", string(edPEM), "P-256"},
		"P-256 for EdDSA":         {"EdDSA", string(ecPEM), "needs an Ed25519"},
		"PEM off the curve":       {"ES256", string(offPEM), "reading the public key"},
		"JWK off the curve":       {"ES256", `{"kty":"EC","crv":"P-256","x":"` + ex + `","y":"` + ex + `"}`, "not on the curve"},
		"JWK short x":             {"ES256", `{"kty":"EC","crv":"P-256","x":"AAAA","y":"` + ey + `"}`, "32 bytes"},
		"JWK x with padding":      {"EdDSA", `{"kty":"OKP","crv":"Ed25519","x":"` + x + `="}`, "32 bytes"},
		"JWK without x":           {"EdDSA", `{"kty":"OKP","crv":"Ed25519"}`, "32 bytes"},
		"JWK private":             {"EdDSA", okp(`,"d":"AAAA"`), "private key"},
		"JWK symmetric":           {"EdDSA", `{"kty":"oct","k":"AAAA"}`, "symmetric"},
		"JWK RSA":                 {"EdDSA", `{"kty":"RSA","n":"AAAA","e":"AQAB"}`, "neither OKP"},
		"JWK X25519":              {"EdDSA", `{"kty":"OKP","crv":"X25519","x":"` + x + `"}`, "neither OKP"},
		"JWK for encryption":      {"EdDSA", okp(`,"use":"enc"`), "use"},
		"JWK that does not check": {"EdDSA", okp(`,"key_ops":["sign"]`), "key_ops"},
		"JWK of another alg":      {"EdDSA", okp(`,"alg":"ES256"`), "alg"},
		"JWK for the other alg":   {"ES256", okp(""), "P-256"},
		"JWK kid empty":           {"EdDSA", okp(`,"kid":""`), "kid"},
		"JWK kid number":          {"EdDSA", okp(`,"kid":1`), "kid"},
		"JWK x twice":             {"EdDSA", okp(`,"x":"` + x + `"`), "twice"},
		"JWK trailing":            {"EdDSA", okp("") + "x", "not one JSON object"},
		"JWK set":                 {"EdDSA", `{"keys":[` + okp("") + `]}`, "JWK set"},
		"JWK zero":                {"EdDSA", `{"kty":"OKP","crv":"Ed25519","x":"` + b64(make([]byte, 32)) + `"}`, "small order"},
	} {
		_, err := link.ParsePublicKey(c.alg, []byte(c.data))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
}

// Each of these keys lets anybody sign: R = identity and S = 0 fit a share of
// all messages. The test makes such a forgery with the standard library and
// sees the key refused.
func TestSmallOrderKeysAreRefused(t *testing.T) {
	for _, h := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		pub, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		forged := false
		sig := make([]byte, ed25519.SignatureSize)
		sig[0] = 1
		for i := 0; i < 512 && !forged; i++ {
			forged = ed25519.Verify(pub, []byte{byte(i), byte(i >> 8)}, sig)
		}
		if !forged {
			t.Errorf("%s: no forgery found, so it need not be refused", h)
		}
		if _, err := link.ParsePublicKey("EdDSA", []byte(`{"kty":"OKP","crv":"Ed25519","x":"`+b64(pub)+`"}`)); err == nil {
			t.Errorf("%s: accepted", h)
		}
	}
}

func TestPrivateKeyRoundTrip(t *testing.T) {
	k, err := link.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := link.MarshalPrivate(k)
	if err != nil {
		t.Fatal(err)
	}
	again, err := link.ParsePrivate(der)
	if err != nil {
		t.Fatal(err)
	}
	if again.ID != k.ID || again.Algorithm != link.EdDSA || !k.Public.(ed25519.PublicKey).Equal(again.Public) {
		t.Fatalf("%v came back as %v", k, again)
	}
	tok, err := link.Mint(again, ownClaims())
	if err != nil {
		t.Fatal(err)
	}
	tr, err := link.NewTrust(audience, link.Issuer{Name: "portal", Keys: []link.Key{k}, Own: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := tr.Verify(tok, at); err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalPKCS8PrivateKey(ecPair.ec)
	if err != nil {
		t.Fatal(err)
	}
	if ec, err := link.ParsePrivate(ecDER); err != nil || ec.Algorithm != link.ES256 {
		t.Fatalf("%v, %v", ec, err)
	}
}

func TestPrivateKeyRefusals(t *testing.T) {
	k, err := link.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{7}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	same, err := link.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{7}, 32)))
	if err != nil || same.ID != k.ID {
		t.Fatalf("the injected randomness does not decide: %v %v %v", k, same, err)
	}
	if _, err := link.GenerateKey(bytes.NewReader(make([]byte, 31))); err == nil {
		t.Error("made a key of too little randomness")
	}
	renamed := k
	renamed.ID = "mine"
	if _, err := link.MarshalPrivate(renamed); err == nil {
		t.Error("an id that would be lost was accepted")
	}
	if _, err := link.MarshalPrivate(edPair.key("k1")); err == nil {
		t.Error("a public key was stored as private")
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range [][]byte{nil, {0x30}, rsaDER} {
		if _, err := link.ParsePrivate(der); err == nil {
			t.Errorf("accepted %d bytes", len(der))
		}
	}
}

// A key that ends up in a log line or an error says its name only.
func TestKeysDoNotPrintSecrets(t *testing.T) {
	k, err := link.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{0xAB}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{k, []link.Key{k}, link.Issuer{Name: "a", Keys: []link.Key{k}}} {
			s := fmt.Sprintf(verb, v)
			if strings.Contains(s, "abababab") || strings.Contains(s, "171 171") || strings.Contains(s, "0xab, 0xab") {
				t.Errorf("%s prints the seed: %s", verb, s)
			}
		}
	}
	if j, err := json.Marshal(k); err == nil && strings.Contains(string(j), "q6urq6ur") {
		t.Errorf("JSON holds the seed: %s", j)
	}
}
