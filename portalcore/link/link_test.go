package link_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
)

const audience = "https://billing.example.com"

// at is the moment all fixed tokens are issued.
var at = time.Unix(1_800_000_000, 0).UTC()

// pair is a signer without any JOSE library, so that tokens can be wrong in
// every way and right without the library under test.
type pair struct {
	alg string
	ed  ed25519.PrivateKey
	ec  *ecdsa.PrivateKey
}

var (
	edPair    = newEd(1)
	ecPair    = newEC()
	otherEd   = newEd(2)
	otherEC   = newEC()
	bothPairs = []pair{edPair, ecPair}
)

func newEd(fill byte) pair {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = fill
	return pair{alg: "EdDSA", ed: ed25519.NewKeyFromSeed(seed)}
}

func newEC() pair {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return pair{alg: "ES256", ec: k}
}

func (p pair) signer() crypto.Signer {
	if p.ed != nil {
		return p.ed
	}
	return p.ec
}

func (p pair) public() crypto.PublicKey { return p.signer().Public() }

func (p pair) key(id string) link.Key {
	return link.Key{ID: id, Algorithm: p.alg, Public: p.public()}
}

func (p pair) sign(input string) []byte {
	if p.ed != nil {
		return ed25519.Sign(p.ed, []byte(input))
	}
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, p.ec, sum[:])
	if err != nil {
		panic(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// token signs any two byte strings, JSON or not.
func (p pair) token(header, payload string) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(p.sign(input))
}

func (p pair) header() string {
	return `{"alg":"` + p.alg + `","kid":"k1","typ":"portal-link+jwt"}`
}

const goodPayload = `{"iss":"acme-app","aud":"https://billing.example.com","sub":"cus_1","iat":1800000000,"exp":1800000300,"jti":"0123456789abcdef"}`

// with replaces members of goodPayload by raw JSON, or removes those given as
// "", or adds.
func with(kv ...string) string {
	out := []string{}
	replaced := map[string]bool{}
	for m := range strings.SplitSeq(strings.Trim(goodPayload, "{}"), ",") {
		name, _, _ := strings.Cut(m, ":")
		name = strings.Trim(name, `"`)
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == name {
				replaced[name] = true
				m = ""
				if kv[i+1] != "" {
					m = `"` + name + `":` + kv[i+1]
				}
			}
		}
		if m != "" {
			out = append(out, m)
		}
	}
	for i := 0; i < len(kv); i += 2 {
		if !replaced[kv[i]] {
			out = append(out, `"`+kv[i]+`":`+kv[i+1])
		}
	}
	return "{" + strings.Join(out, ",") + "}"
}

// raw adds text before the closing brace of goodPayload.
func raw(s string) string { return strings.TrimSuffix(goodPayload, "}") + s + "}" }

func trust(t testing.TB, p pair) *link.Trust {
	t.Helper()
	other := otherEd
	if p.ec != nil {
		other = otherEC
	}
	tr, err := link.NewTrust(audience,
		link.Issuer{Name: "acme-app", Keys: []link.Key{p.key("k1"), other.key("k2")}},
		link.Issuer{Name: "acme-plain", Keys: []link.Key{p.key("k1")}, AllowPlainJWT: true},
		link.Issuer{Name: "portal", Keys: []link.Key{p.key("own")}, Own: true},
	)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func wantReason(t *testing.T, err error, kind link.Kind, reason string) {
	t.Helper()
	var e *link.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, want an *Error with reason %q", err, reason)
	}
	if e.Kind != kind || e.Reason != reason {
		t.Fatalf("refused with kind %d %q, want kind %d %q", e.Kind, e.Reason, kind, reason)
	}
}

// Reasons that stand in many rows.
const (
	rSegments  = "token does not have three segments"
	rHeaderB64 = "header is not canonical base64url"
	rBodyB64   = "payload is not canonical base64url"
	rSigB64    = "signature is not canonical base64url"
	rHeaderObj = "header is not one JSON object"
	rHeaderDup = "header has a member twice"
	rHeaderX   = "header has a member other than alg, kid and typ"
	rHeaderStr = "header has a member that is empty or not a string"
	rHeaderGap = "header lacks alg, kid or typ"
	rHeaderSpl = "header has a known member in another spelling"
	rAlg       = "alg is not the one pinned for this key"
	rKid       = "kid is not a key of this issuer"
	rTyp       = "typ is not that of a redirect token"
	rSigLen    = "signature is not 64 bytes long"
	rSig       = "signature does not verify"
	rBodyObj   = "payload is not one JSON object"
	rBodyUTF8  = "payload is not valid UTF-8"
	rBodyNUL   = "payload has a NUL"
	rBodySur   = "payload has a lone surrogate"
	rBodyDup   = "payload has a member twice"
	rBodyDeep  = "payload is nested too deeply"
	rBodyMany  = "payload has too many members"
	rBodySpl   = "payload has a known member in another spelling"
	rIss       = "iss is not a trusted issuer"
	rIssType   = "iss is missing or not a string"
	rAud       = "aud is not this portal"
	rAudType   = "aud is missing or not one string"
	rSub       = "sub is missing or not a customer id"
	rJti       = "jti is missing or not 16 to 128 URL-safe characters"
	rIat       = "iat is missing or not a plain integer in range"
	rExp       = "exp is missing or not a plain integer in range"
	rOrder     = "exp is not after iat"
	rLife      = "lifetime is over 300 seconds"
	rActor     = "actor is not an object of short texts"
	rRole      = "role is not owner, billing, viewer or support"
	rPerm      = "permissions is not a list of action names"
	rLong      = "token is longer than 4096 bytes"
	rGen       = "gen is missing or not a generation"
	rGenOther  = "gen is only for the portal's own links"
)

type hostile struct {
	name   string
	token  string
	reason string
}

// hostileTokens lists the wrong tokens for one pair; canary is a URL that must
// never be asked.
func hostileTokens(t testing.TB, p pair, canary string) []hostile {
	t.Helper()
	good := p.token(p.header(), goodPayload)
	seg := strings.Split(good, ".")
	sigOf := func(sig []byte) string { return seg[0] + "." + seg[1] + "." + b64(sig) }
	sig, err := base64.RawURLEncoding.DecodeString(seg[2])
	if err != nil {
		t.Fatal(err)
	}
	var h []hostile
	add := func(name, token, reason string) { h = append(h, hostile{name, token, reason}) }
	head := func(name, header, reason string) { add(name, p.token(header, goodPayload), reason) }
	body := func(name, payload, reason string) { add(name, p.token(p.header(), payload), reason) }
	hdr := func(alg, kid, typ string) string {
		return fmt.Sprintf(`{"alg":%s,"kid":%s,"typ":%s}`, alg, kid, typ)
	}
	alg, kid, typ := `"`+p.alg+`"`, `"k1"`, `"portal-link+jwt"`
	extra := func(member string) string {
		return `{"alg":` + alg + `,"kid":` + kid + `,"typ":` + typ + `,` + member + `}`
	}
	other, otherKey := `"ES256"`, otherEd
	if p.ec != nil {
		other, otherKey = `"EdDSA"`, otherEC
	}

	// The alg label.
	for _, a := range []string{"none", "None", "NONE", "nOnE", "HS256", "HS384", "HS512", "RS256", "PS256", "ES384", "ES512", "ES256K", "Ed25519", "Ed448", strings.ToLower(p.alg), p.alg + " "} {
		head("alg "+a+" over a good signature", hdr(`"`+a+`"`, kid, typ), rAlg)
	}
	add("alg none without signature", b64([]byte(hdr(`"none"`, kid, typ)))+"."+seg[1]+".", rAlg)
	head("alg of the other kind", hdr(other, kid, typ), rAlg)
	head("alg empty", hdr(`""`, kid, typ), rHeaderStr)
	head("alg null", hdr(`null`, kid, typ), rHeaderStr)
	head("alg number", hdr(`1`, kid, typ), rHeaderStr)
	head("alg array", hdr(`[`+alg+`]`, kid, typ), rHeaderStr)
	head("alg missing", `{"kid":"k1","typ":"portal-link+jwt"}`, rHeaderGap)
	head("alg in upper case beside none", `{"alg":"none","ALG":`+alg+`,"kid":"k1","typ":"portal-link+jwt"}`, rHeaderSpl)

	// HMAC with what everybody knows.
	der, err := x509.MarshalPKIXPublicKey(p.public())
	if err != nil {
		t.Fatal(err)
	}
	thumb, err := link.Thumbprint(p.public())
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string][]byte{
		"empty key": nil, "DER": der, "thumbprint": []byte(thumb),
		"PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
	} {
		input := b64([]byte(hdr(`"HS256"`, kid, typ))) + "." + seg[1]
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(input))
		add("HS256 with the public key as "+name, input+"."+b64(m.Sum(nil)), rAlg)
		input = seg[0] + "." + seg[1]
		m = hmac.New(sha512.New, secret)
		m.Write([]byte(input))
		add("HS512 under a good alg label with the public key as "+name, input+"."+b64(m.Sum(nil)), rSig)
	}

	// The key id.
	head("kid missing", `{"alg":`+alg+`,"typ":"portal-link+jwt"}`, rHeaderGap)
	head("kid empty", hdr(alg, `""`, typ), rHeaderStr)
	head("kid null", hdr(alg, `null`, typ), rHeaderStr)
	head("kid number", hdr(alg, `1`, typ), rHeaderStr)
	head("kid array", hdr(alg, `["k1"]`, typ), rHeaderStr)
	head("kid object", hdr(alg, `{"k1":"k1"}`, typ), rHeaderStr)
	head("kid unknown", hdr(alg, `"k9"`, typ), rKid)
	head("kid in upper case", hdr(alg, `"K1"`, typ), rKid)
	head("kid with a space", hdr(alg, `"k1 "`, typ), rKid)
	head("kid of another issuer", hdr(alg, `"own"`, typ), rKid)
	head("kid path", hdr(alg, `"../../dev/null"`, typ), rKid)
	head("kid SQL", hdr(alg, `"' OR 1=1--"`, typ), rKid)
	head("kid placeholder", hdr(alg, `"{env.STRIPE_KEY}"`, typ), rKid)
	head("kid CRLF", hdr(alg, `"k1\r\nlevel=info"`, typ), rKid)
	head("kid NUL", hdr(alg, `"k1\u0000"`, typ), "header has a NUL")
	head("kid of 64 KiB", hdr(alg, `"`+strings.Repeat("k", 65536)+`"`, typ), rLong)
	head("right kid of a wrong key", hdr(alg, `"k2"`, typ), rSig)
	add("wrong key under the right kid", otherKey.token(p.header(), goodPayload), rSig)

	// Members that bring a key, change what is signed, or are not ours.
	jwk := `{"kty":"OKP","crv":"Ed25519","x":"` + b64(otherEd.public().(ed25519.PublicKey)) + `"}`
	head("jwk", extra(`"jwk":`+jwk), rHeaderX)
	add("jwk, signed by it", otherEd.token(`{"alg":"EdDSA","kid":"k1","typ":"portal-link+jwt","jwk":`+jwk+`}`, goodPayload), rHeaderX)
	head("jku", extra(`"jku":"`+canary+`/jwks.json"`), rHeaderX)
	head("x5u", extra(`"x5u":"`+canary+`/cert.pem"`), rHeaderX)
	head("jku to a file", extra(`"jku":"file:///etc/passwd"`), rHeaderX)
	head("x5c", extra(`"x5c":["`+base64.StdEncoding.EncodeToString(der)+`"]`), rHeaderX)
	head("x5t", extra(`"x5t":"AAAA"`), rHeaderX)
	head("x5t#S256", extra(`"x5t#S256":"AAAA"`), rHeaderX)
	head("crit unknown, absent", extra(`"crit":["urn:x"]`), rHeaderX)
	head("crit unknown, present", extra(`"crit":["urn:x"],"urn:x":1`), rHeaderX)
	head("crit empty", extra(`"crit":[]`), rHeaderX)
	head("crit not an array", extra(`"crit":"exp"`), rHeaderX)
	head("b64 false", extra(`"b64":false`), rHeaderX)
	head("b64 false with crit", extra(`"b64":false,"crit":["b64"]`), rHeaderX)
	head("zip", extra(`"zip":"DEF"`), rHeaderX)
	head("cty JWT", extra(`"cty":"JWT"`), rHeaderX)
	head("enc", extra(`"enc":"A256GCM"`), rHeaderX)
	head("iss in the header", extra(`"iss":"acme-app"`), rHeaderX)
	head("typ JWT", hdr(alg, kid, `"JWT"`), rTyp)
	head("typ at+jwt", hdr(alg, kid, `"at+jwt"`), rTyp)
	head("typ in upper case", hdr(alg, kid, `"PORTAL-LINK+JWT"`), rTyp)
	head("typ with application/", hdr(alg, kid, `"application/portal-link+jwt"`), rTyp)
	head("typ empty", hdr(alg, kid, `""`), rHeaderStr)
	head("typ missing", `{"alg":`+alg+`,"kid":"k1"}`, rHeaderGap)
	head("header alg twice", `{"alg":"none","alg":`+alg+`,"kid":"k1","typ":"portal-link+jwt"}`, rHeaderDup)
	head("header kid twice", extra(`"kid":"k1"`), rHeaderDup)
	head("header kid twice, once escaped", extra(`"\u006bid":"k1"`), rHeaderDup)
	head("header kid escaped", `{"alg":`+alg+`,"\u006bid":"k1","typ":"portal-link+jwt"}`, rHeaderSpl)
	head("header empty object", `{}`, rHeaderGap)
	head("header array", `[]`, rHeaderObj)
	head("header null", `null`, rHeaderObj)
	head("header string", `"x"`, rHeaderObj)
	head("header empty", ``, rHeaderObj)
	head("header with a second object", p.header()+`{}`, rHeaderObj)
	head("header with a BOM", "\ufeff"+p.header(), rHeaderObj)
	head("header not UTF-8", strings.Replace(p.header(), "k1", "k\xff", 1), "header is not valid UTF-8")
	add("plain JWT of a plain issuer with another typ", p.token(hdr(alg, kid, `"at+jwt"`), with("iss", `"acme-plain"`)), rTyp)
	add("JWT in lower case of a plain issuer", p.token(hdr(alg, kid, `"jwt"`), with("iss", `"acme-plain"`)), rTyp)

	// Other serializations and tokens.
	add("flattened JSON", `{"protected":"`+seg[0]+`","payload":"`+seg[1]+`","signature":"`+seg[2]+`"}`, rSegments)
	add("general JSON", `{"payload":"`+seg[1]+`","signatures":[{"protected":"`+seg[0]+`","signature":"AA"},{"protected":"`+seg[0]+`","signature":"`+seg[2]+`"}]}`, rSegments)
	add("JSON with dots", `{"a":"..","protected":"`+seg[0]+`"}`, rHeaderB64)
	add("JWE", b64([]byte(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA"}`))+".AA.AA.AA.AA", rSegments)
	add("JWE dir cut to three", b64([]byte(`{"alg":"dir","enc":"A128GCM"}`))+".e30.AA", rHeaderX)
	add("nested JWT", p.token(p.header(), good), rBodyObj)

	// Segments.
	add("empty", "", rSegments)
	add("one segment", seg[0], rSegments)
	add("two segments", seg[0]+"."+seg[1], rSegments)
	add("four segments", good+".AA", rSegments)
	add("five segments", good+".AA.AA", rSegments)
	add("trailing dot", good+".", rSegments)
	add("leading dot", "."+good, rSegments)
	add("only dots", "..", rHeaderObj)
	add("1 MiB of dots", strings.Repeat(".", 1<<20), rLong)
	add("1 MiB of A", strings.Repeat("A", 1<<20), rLong)
	add("4097 bytes", strings.Repeat("A", 4097), rLong)
	add("4096 dots", strings.Repeat(".", 4096), rSegments)
	add("no payload", seg[0]+".."+seg[2], rBodyObj)

	// The signature.
	flipped := append([]byte{}, sig...)
	flipped[63] ^= 1
	add("signature empty", seg[0]+"."+seg[1]+".", rSigLen)
	add("signature of 63 bytes", sigOf(sig[:63]), rSigLen)
	add("signature of 65 bytes", sigOf(append(append([]byte{}, sig...), 0)), rSigLen)
	add("signature of 128 bytes", sigOf(append(append([]byte{}, sig...), sig...)), rSigLen)
	add("signature all zero", sigOf(make([]byte, 64)), rSig)
	add("signature all ones", sigOf([]byte(strings.Repeat("\xff", 64))), rSig)
	add("signature with its last bit flipped", sigOf(flipped), rSig)
	add("signature halves swapped", sigOf(append(append([]byte{}, sig[32:]...), sig[:32]...)), rSig)
	add("signature of other claims", seg[0]+"."+b64([]byte(with("sub", `"cus_2"`)))+"."+seg[2], rSig)
	add("signature r or R zero", sigOf(append(make([]byte, 32), sig[32:]...)), rSig)
	add("signature s or S zero", sigOf(append(append([]byte{}, sig[:32]...), make([]byte, 32)...)), rSig)
	if p.ec != nil {
		n := elliptic.P256().Params().N
		sum := sha256.Sum256([]byte(seg[0] + "." + seg[1]))
		asn1, err := ecdsa.SignASN1(rand.Reader, p.ec, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		add("signature in DER", sigOf(asn1), rSigLen)
		add("signature r = n", sigOf(append(n.FillBytes(make([]byte, 32)), sig[32:]...)), rSig)
		add("signature s = n", sigOf(append(append([]byte{}, sig[:32]...), n.FillBytes(make([]byte, 32))...)), rSig)
	} else {
		// S + L verifies in lax implementations (RFC 8032, section 5.1.7).
		l, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
		be := func(b []byte) []byte {
			out := make([]byte, len(b))
			for i := range b {
				out[len(b)-1-i] = b[i]
			}
			return out
		}
		s := new(big.Int).Add(new(big.Int).SetBytes(be(sig[32:])), l)
		add("signature S + L", sigOf(append(append([]byte{}, sig[:32]...), be(s.FillBytes(make([]byte, 32)))...)), rSig)
	}

	// Other encodings of the same bytes.
	add("padded signature", good+"==", rSigB64)
	add("padded header", seg[0]+"=."+seg[1]+"."+seg[2], rHeaderB64)
	add("non-canonical last character", good[:len(good)-1]+string(rune(nextInAlphabet(good[len(good)-1]))), rSigB64)
	add("newline inside the header", seg[0][:4]+"\n"+seg[0][4:]+"."+seg[1]+"."+seg[2], rHeaderB64)
	add("CR inside the payload", seg[0]+"."+seg[1][:4]+"\r"+seg[1][4:]+"."+seg[2], rBodyB64)
	add("trailing newline", good+"\n", rSigB64)
	add("trailing CRLF", good+"\r\n", rSigB64)
	add("trailing space", good+" ", rSigB64)
	add("leading space", " "+good, rHeaderB64)
	add("space before a dot", seg[0]+" ."+seg[1]+"."+seg[2], rHeaderB64)
	add("NUL at the end", good+"\x00", rSigB64)
	add("Bearer prefix", "Bearer "+good, rHeaderB64)
	add("BOM in front", "\ufeff"+good, rHeaderB64)
	add("percent-encoded dots", strings.ReplaceAll(good, ".", "%2E"), rSegments)
	add("fullwidth dots", strings.ReplaceAll(good, ".", "．"), rSegments)
	add("fullwidth letter", "ｅ"+good[1:], rHeaderB64)
	add("quoted", `"`+good+`"`, rHeaderB64)
	stdBody := base64.StdEncoding.EncodeToString([]byte(with("x", `"`+strings.Repeat("?>~", 9)+`"`)))
	add("standard alphabet", seg[0]+"."+stdBody+"."+seg[2], rBodyB64)

	// The payload as JSON.
	body("payload array", `[`+goodPayload+`]`, rBodyObj)
	body("payload string", `"x"`, rBodyObj)
	body("payload number", `1`, rBodyObj)
	body("payload null", `null`, rBodyObj)
	body("payload with a second object", goodPayload+`{"sub":"cus_2"}`, rBodyObj)
	body("payload with trailing junk", goodPayload+`x`, rBodyObj)
	body("payload with a trailing comma", raw(","), rBodyObj)
	body("payload with a comment", raw("/*x*/"), rBodyObj)
	body("payload with single quotes", strings.ReplaceAll(goodPayload, `"`, `'`), rBodyObj)
	body("payload with a BOM", "\ufeff"+goodPayload, rBodyObj)
	body("payload NaN", with("x", `NaN`), rBodyObj)
	body("payload leading zero", with("exp", `01800000300`), rBodyObj)
	body("payload hex number", with("exp", `0x6B49D32C`), rBodyObj)
	body("payload not UTF-8", with("x", "\"\xff\""), rBodyUTF8)
	body("payload overlong UTF-8", with("x", "\"\xc0\x80\""), rBodyUTF8)
	body("payload UTF-8 surrogate", with("x", "\"\xed\xa0\x80\""), rBodyUTF8)
	body("payload NUL escape", with("sub", `"cus_1\u0000"`), rBodyNUL)
	body("payload NUL byte", with("sub", "\"cus_1\x00\""), rBodyObj)
	body("payload NUL in a name", with(`x\u0000`, `1`), rBodyNUL)
	body("payload high surrogate alone", with("x", `"\ud800"`), rBodySur)
	body("payload high surrogate and a letter", with("x", `"\ud800\u0041"`), rBodySur)
	body("payload low surrogate alone", with("x", `"\udc00"`), rBodySur)
	body("payload surrogates swapped", with("x", `"\udc00\ud800"`), rBodySur)
	body("payload 9 deep", with("x", strings.Repeat("[", 8)+strings.Repeat("]", 8)), rBodyDeep)
	body("payload 1000 deep", with("x", strings.Repeat("[", 1000)+strings.Repeat("]", 1000)), rBodyDeep)
	body("payload 100k deep", with("x", strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)), rLong)
	body("payload 300 elements", with("x", "["+strings.Repeat("0,", 299)+"0]"), rBodyMany)

	// Duplicates and other spellings.
	body("sub twice, victim last", raw(`,"sub":"cus_2"`), rBodyDup)
	body("sub twice, the same", raw(`,"sub":"cus_1"`), rBodyDup)
	body("exp twice", raw(`,"exp":1900000000`), rBodyDup)
	body("jti twice", raw(`,"jti":"fedcba9876543210"`), rBodyDup)
	body("iss twice", raw(`,"iss":"portal"`), rBodyDup)
	body("unknown member twice", raw(`,"x":1,"x":1`), rBodyDup)
	body("nested member twice", raw(`,"x":[{"y":1,"y":2}]`), rBodyDup)
	body("actor id twice", raw(`,"actor":{"id":"a","id":"b"}`), rBodyDup)
	body("sub twice, once escaped", raw(`,"\u0073ub":"cus_2"`), rBodyDup)
	body("sub escaped", strings.Replace(goodPayload, `"sub"`, `"\u0073ub"`, 1), rBodySpl)
	body("SUB beside sub", raw(`,"SUB":"cus_2"`), rBodySpl)
	body("Exp beside exp", raw(`,"Exp":1900000000`), rBodySpl)
	body("ſub with a long s", raw(`,"ſub":"cus_2"`), rBodySpl)
	body("Sub alone", strings.Replace(goodPayload, `"sub"`, `"Sub"`, 1), rBodySpl)
	body("Permissions", raw(`,"Permissions":[]`), rBodySpl)
	body("ROLE", raw(`,"ROLE":"viewer"`), rBodySpl)

	// iss, aud, sub, jti.
	for v, reason := range map[string]string{
		`""`: rIss, `"acme-app/"`: rIss, `"Acme-App"`: rIss, `"acme-app "`: rIss, `"аcme-app"`: rIss, `"evil"`: rIss,
		``: rIssType, `null`: rIssType, `["acme-app"]`: rIssType, `1`: rIssType, `{}`: rIssType,
	} {
		body("iss "+v, with("iss", v), reason)
	}
	body("iss of the own portal with a vendor's key", with("iss", `"portal"`), rKid)
	for v, reason := range map[string]string{
		`"https://billing.example.com/"`: rAud, `"https://billing.example.co"`: rAud, `"https://BILLING.example.com"`: rAud, `"http://billing.example.com"`: rAud,
		`"https://billing.example.com:443"`: rAud, `"https://billing.example.com.evil.com"`: rAud, `"*"`: rAud, `"https://other.example.com"`: rAud,
		``: rAudType, `""`: rAudType, `null`: rAudType, `1`: rAudType, `["https://billing.example.com"]`: rAudType,
		`["https://billing.example.com","https://other.example.com"]`: rAudType, `[]`: rAudType,
	} {
		body("aud "+v, with("aud", v), reason)
	}
	for _, v := range []string{``, `null`, `""`, `" "`, `"cus 1"`, `"cus_1 "`, `1`, `["cus_1"]`, `{"id":"cus_1"}`, `true`, `"cus_é"`, `"cus_1\n"`, `"cus_\u007f"`, `"` + strings.Repeat("c", 256) + `"`} {
		body("sub "+v, with("sub", v), rSub)
	}
	for _, v := range []string{``, `null`, `""`, `1`, `["0123456789abcdef"]`, `"0123456789abcde"`, `"` + strings.Repeat("j", 129) + `"`, `"0123456789abcde="`, `"0123456789abcde/"`, `"0123456789 bcdef"`, `"0123456789abcdeé"`, `"{env.STRIPE_KEY}"`} {
		body("jti "+v, with("jti", v), rJti)
	}

	// Times. Those that are well-formed but wrong are in TestTimes.
	for _, v := range []string{``, `null`, `""`, `"1800000300"`, `1800000300.0`, `1800000300.5`, `18000003e2`, `1.8000003E9`, `-1`, `-0`, `1e30`, `9223372036854775807`, `9223372036854775808`, `1800000300000`, `[1800000300]`, `true`, `{}`} {
		body("exp "+v, with("exp", v), rExp)
	}
	for _, v := range []string{``, `null`, `"1800000000"`, `1800000000.0`, `-1`, `1800000000000`, `false`} {
		body("iat "+v, with("iat", v), rIat)
	}
	body("exp 0", with("exp", `0`), rOrder)
	body("exp = iat", with("exp", `1800000000`), rOrder)
	body("exp < iat", with("exp", `1799999999`), rOrder)
	body("lifetime of 301 s", with("exp", `1800000301`), rLife)
	body("lifetime of ten years", with("exp", `2115360000`), rLife)
	body("iat 0 and exp far", with("iat", `0`), rLife)
	for _, v := range []string{`null`, `"1800000000"`, `1.5`, `-1`} {
		body("nbf "+v, with("nbf", v), "nbf is not a plain integer in range")
	}

	// What the session may do.
	body("flow", with("flow", `{"type":"cancel"}`), "flow is not supported by this build")
	body("flow null", with("flow", `null`), "flow is not supported by this build")
	body("facts", with("facts", `{"members":3}`), "facts is not supported by this build")
	for _, v := range []string{`null`, `""`, `"admin"`, `"Owner"`, `["viewer"]`, `1`, `{}`} {
		body("role "+v, with("role", v), rRole)
	}
	for _, v := range []string{`{}`, `{"email":"sue@acme.example"}`, `{"id":""}`} {
		body("support by "+v, with("role", `"support"`, "actor", v, "permissions", `["cancel"]`), "role support needs an actor with an id")
	}
	body("support with a long reason", with("role", `"support"`, "actor", `{"id":"a"}`, "reason", `"`+strings.Repeat("x", 201)+`"`), "reason is not text of at most 200 characters")
	body("support with odd reasons", with("role", `"support"`, "actor", `{"id":"a"}`, "reason", `["x"]`), "reason is not text of at most 200 characters")
	for _, v := range []string{`null`, `"cancel"`, `{"cancel":true}`, `[1]`, `[null]`, `[["cancel"]]`, `[""]`, `["a b"]`, `["a\n"]`, `["` + strings.Repeat("p", 65) + `"]`, `[` + strings.Repeat(`"p",`, 64) + `"p"]`, `true`} {
		body("permissions "+v, with("permissions", v), rPerm)
	}
	for _, v := range []string{`null`, `"ann"`, `[]`, `{"id":1}`, `{"id":null}`, `{"email":["a@b"]}`, `{"name":{}}`, `{"name":"a\r\nb"}`, `{"id":"` + strings.Repeat("i", 256) + `"}`, `{"email":"` + strings.Repeat("e", 321) + `"}`, `{"name":"` + strings.Repeat("n", 256) + `"}`} {
		body("actor "+v, with("actor", v), rActor)
	}
	for _, v := range []string{`null`, `""`, `1`, `["https://app.example.com"]`, `"https://app.example.com/\r\nX: y"`, `"` + strings.Repeat("u", 2049) + `"`} {
		body("return_url "+v, with("return_url", v), "return_url is not text of 1 to 2048 bytes")
	}
	for _, v := range []string{`null`, `""`, `1`, `"d e"`, `"` + strings.Repeat("l", 36) + `"`} {
		body("locale "+v, with("locale", v), "locale is not a language tag")
	}
	for _, v := range []string{`null`, `""`, `1`, `"a b"`, `"` + strings.Repeat("c", 129) + `"`} {
		body("configuration "+v, with("configuration", v), "configuration is not a policy name")
	}
	for _, v := range []string{`"g1"`, `""`, `null`} {
		body("gen from a vendor "+v, with("gen", v), rGenOther)
	}
	own := func(name, payload, reason string) { add(name, p.token(hdr(alg, `"own"`, typ), payload), reason) }
	own("own without gen", with("iss", `"portal"`), rGen)
	for _, v := range []string{`""`, `null`, `1`, `["g"]`, `"g 1"`, `"` + strings.Repeat("g", 129) + `"`} {
		own("own with gen "+v, with("iss", `"portal"`, "gen", v), rGen)
	}
	add("own with typ JWT", p.token(hdr(alg, `"own"`, `"JWT"`), with("iss", `"portal"`, "gen", `"g1"`)), rTyp)
	return h
}

// nextInAlphabet returns the character after c, which in the last place of a
// 64-byte signature differs only in bits that decode to nothing.
func nextInAlphabet(c byte) byte {
	const a = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return a[strings.IndexByte(a, c)+1]
}

func TestHostileTokens(t *testing.T) {
	var hits atomic.Int32
	canary := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer canary.Close()
	for _, p := range bothPairs {
		tr := trust(t, p)
		if _, _, err := tr.Verify(p.token(p.header(), goodPayload), at); err != nil {
			t.Fatalf("%s: the token all others are made from is refused: %v", p.alg, err)
		}
		seen := map[string]bool{}
		tokens := hostileTokens(t, p, canary.URL)
		for _, h := range tokens {
			name := p.alg + "/" + h.name
			if len(name) > 60 {
				name = name[:60]
			}
			if seen[h.name] {
				t.Fatalf("two rows are called %q", h.name)
			}
			seen[h.name] = true
			t.Run(name, func(t *testing.T) {
				c, is, err := tr.Verify(h.token, at)
				wantReason(t, err, link.Invalid, h.reason)
				if is != nil || !reflect.DeepEqual(c, link.Claims{}) {
					t.Fatalf("a refused token gives away %+v", c)
				}
			})
		}
		t.Logf("%s: %d hostile tokens", p.alg, len(tokens))
		if len(tokens) < 90 {
			t.Fatalf("only %d hostile tokens", len(tokens))
		}
	}
	if n := hits.Load(); n != 0 {
		t.Fatalf("a token made the portal ask its URL %d times", n)
	}
}

func TestEveryBitCounts(t *testing.T) {
	for _, p := range bothPairs {
		tr := trust(t, p)
		good := []byte(p.token(p.header(), goodPayload))
		for i := range good {
			for bit := range 8 {
				good[i] ^= 1 << bit
				if _, _, err := tr.Verify(string(good), at); err == nil {
					t.Fatalf("%s: accepted with bit %d of byte %d flipped", p.alg, bit, i)
				}
				good[i] ^= 1 << bit
			}
		}
	}
}

// ECDSA signatures have a twin, n - s, and signers do not normalize, so both
// are good; that the twin has the same jti keeps it from being a second link.
func TestMalleatedSignatureIsTheSameLink(t *testing.T) {
	tr := trust(t, ecPair)
	tok := ecPair.token(ecPair.header(), goodPayload)
	i := strings.LastIndexByte(tok, '.')
	sig, err := base64.RawURLEncoding.DecodeString(tok[i+1:])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(sig[32:]))
	twin := tok[:i+1] + b64(append(sig[:32:32], s.FillBytes(make([]byte, 32))...))
	a, _, errA := tr.Verify(tok, at)
	b, _, errB := tr.Verify(twin, at)
	if errA != nil || errB != nil || twin == tok || !reflect.DeepEqual(a, b) {
		t.Fatalf("%v, %v; %+v, %+v", errA, errB, a, b)
	}
}

func TestTimes(t *testing.T) {
	p := edPair
	tr := trust(t, p)
	tok := func(kv ...string) string { return p.token(p.header(), with(kv...)) }
	const future, nbf, passed = "iat is in the future", "nbf is in the future", "exp has passed"

	// Second by second over everything around a link's life.
	full := tok()
	for s := -20; s <= 330; s++ {
		_, _, err := tr.Verify(full, at.Add(time.Duration(s)*time.Second))
		switch {
		case s < -5:
			wantReason(t, err, link.Invalid, future)
		case s >= 305:
			wantReason(t, err, link.Expired, passed)
		case err != nil:
			t.Fatalf("at %+d s: %v", s, err)
		}
	}
	for _, c := range []struct {
		name   string
		token  string
		now    time.Duration
		kind   link.Kind
		reason string
	}{
		{"iat a nanosecond over the skew", full, -5*time.Second - 1, link.Invalid, future},
		{"iat exactly the skew ahead", full, -5 * time.Second, 0, ""},
		{"last nanosecond", full, 305*time.Second - 1, 0, ""},
		{"first nanosecond after", full, 305 * time.Second, link.Expired, passed},
		{"years after", full, 24 * 365 * time.Hour, link.Expired, passed},
		{"lifetime 1 s", tok("exp", "1800000001"), 5 * time.Second, 0, ""},
		{"lifetime 1 s, over", tok("exp", "1800000001"), 6 * time.Second, link.Expired, passed},
		{"nbf now", tok("nbf", "1800000000"), 0, 0, ""},
		{"nbf at the skew", tok("nbf", "1800000005"), 0, 0, ""},
		{"nbf over the skew", tok("nbf", "1800000006"), 0, link.Invalid, nbf},
		{"nbf reached", tok("nbf", "1800000006"), time.Second, 0, ""},
		{"nbf long ago", tok("nbf", "0"), 0, 0, ""},
		{"wrong and expired is wrong", tok("jti", `"short"`), time.Hour, link.Invalid, rJti},
		{"for another portal and expired is wrong", tok("aud", `"https://x.example"`), time.Hour, link.Invalid, rAud},
		{"forged and expired is wrong", otherEd.token(p.header(), goodPayload), time.Hour, link.Invalid, rSig},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := tr.Verify(c.token, at.Add(c.now))
			if c.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantReason(t, err, c.kind, c.reason)
		})
	}
}

// The page for an expired link leads back to the vendor's app.
func TestExpiredStillSaysWhoseItWas(t *testing.T) {
	p := edPair
	c, is, err := trust(t, p).Verify(p.token(p.header(), with("return_url", `"https://app.example.com/"`)), at.Add(time.Hour))
	wantReason(t, err, link.Expired, "exp has passed")
	if is == nil || is.Name != "acme-app" || c.ReturnURL != "https://app.example.com/" {
		t.Fatalf("%+v %+v", c, is)
	}
}

func TestAccepted(t *testing.T) {
	want := link.Claims{
		Issuer: "acme-app", Audience: audience, Subject: "cus_1", ID: "0123456789abcdef",
		IssuedAt: at, Expires: at.Add(300 * time.Second),
	}
	for _, c := range []struct {
		name    string
		payload string
		change  func(*link.Claims)
	}{
		{"the least", goodPayload, func(*link.Claims) {}},
		{"unknown members", with("amount", `{"x":[1.5,true,null,"\ud83d\ude00"]}`, "plan", `7`, "email_verified", `true`), func(*link.Claims) {}},
		{"white space", " {\n" + strings.TrimPrefix(goodPayload, "{") + "\r\n ", func(*link.Claims) {}},
		{"8 deep", with("x", strings.Repeat("[", 7)+strings.Repeat("]", 7)), func(*link.Claims) {}},
		{"escaped slashes", with("aud", `"https:\/\/billing.example.com"`, `https:\/\/acme.example\/claim`, `1`), func(*link.Claims) {}},
		{"nothing permitted", with("permissions", `[]`), func(c *link.Claims) { c.Permissions = []string{} }},
		{"longest ids", with("sub", `"`+strings.Repeat("c", 255)+`"`, "jti", `"`+strings.Repeat("j", 128)+`"`), func(c *link.Claims) {
			c.Subject, c.ID = strings.Repeat("c", 255), strings.Repeat("j", 128)
		}},
		{"everything", with(
			"return_url", `"https://app.example.com/settings?a=1&b=2"`, "locale", `"de-CH"`, "configuration", `"enterprise"`, "role", `"billing"`,
			"permissions", `["change_plan","cancel"]`, "actor", `{"id":"u1","email":"ann@example.com","name":"Änn \"A\" 李","staff":true}`,
		), func(c *link.Claims) {
			c.ReturnURL, c.Locale, c.Configuration, c.Role = "https://app.example.com/settings?a=1&b=2", "de-CH", "enterprise", "billing"
			c.Permissions = []string{"change_plan", "cancel"}
			c.Actor = link.Actor{ID: "u1", Email: "ann@example.com", Name: `Änn "A" 李`}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := want
			c.change(&w)
			for _, p := range bothPairs {
				got, is, err := trust(t, p).Verify(p.token(p.header(), c.payload), at)
				if err != nil {
					t.Fatal(p.alg, err)
				}
				if !reflect.DeepEqual(got, w) {
					t.Fatalf("got %+v\nwant %+v", got, w)
				}
				if is.Name != "acme-app" || is.Own {
					t.Fatalf("issuer is %+v", is)
				}
			}
		})
	}
}

// A vendor has a JOSE library, not our tests.
func TestAcceptsWhatVendorsSign(t *testing.T) {
	for _, p := range bothPairs {
		tr := trust(t, p)
		tok, err := jwt.NewBuilder().Issuer("acme-plain").Audience([]string{audience}).Subject("cus_1").IssuedAt(at).
			Expiration(at.Add(time.Minute)).NotBefore(at).JwtID("0123456789abcdef").Claim("role", "viewer").Build()
		if err != nil {
			t.Fatal(err)
		}
		// jwx writes one audience as a list unless told otherwise.
		tok.Options().Enable(jwt.FlattenAudience)
		for _, typ := range []string{"", link.Type} {
			h := jws.NewHeaders()
			if err := h.Set(jws.KeyIDKey, "k1"); err != nil {
				t.Fatal(err)
			}
			if typ != "" {
				if err := h.Set(jws.TypeKey, typ); err != nil {
					t.Fatal(err)
				}
			}
			alg := jwa.EdDSA()
			if p.ec != nil {
				alg = jwa.ES256()
			}
			signed, err := jwt.Sign(tok, jwt.WithKey(alg, p.signer(), jws.WithProtectedHeaders(h)))
			if err != nil {
				t.Fatal(err)
			}
			c, is, err := tr.Verify(string(signed), at)
			if err != nil {
				t.Fatalf("%s with typ %q: %v", p.alg, typ, err)
			}
			if c.Subject != "cus_1" || c.Role != "viewer" || !is.AllowPlainJWT {
				t.Fatalf("%+v", c)
			}
		}
	}
}

func TestRotation(t *testing.T) {
	tok := edPair.token(edPair.header(), goodPayload)
	k1, k2 := edPair.key("k1"), otherEd.key("k2")
	for name, c := range map[string]struct {
		keys []link.Key
		ok   bool
	}{"before": {[]link.Key{k1}, true}, "overlap": {[]link.Key{k2, k1}, true}, "after": {[]link.Key{k2}, false}} {
		tr, err := link.NewTrust(audience, link.Issuer{Name: "acme-app", Keys: c.keys})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := tr.Verify(tok, at); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewTrustRefuses(t *testing.T) {
	k := edPair.key("k1")
	off := &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)} //nolint:staticcheck // a point off the curve can be made in no other way
	is := func(name string, keys ...link.Key) link.Issuer { return link.Issuer{Name: name, Keys: keys} }
	for name, c := range map[string]struct {
		aud     string
		issuers []link.Issuer
		want    string
	}{
		"no audience":     {"", []link.Issuer{is("a", k)}, "audience"},
		"no issuer":       {audience, nil, "needs an issuer"},
		"no name":         {audience, []link.Issuer{is("", k)}, "issuer name"},
		"same name":       {audience, []link.Issuer{is("a", k), is("a", otherEd.key("k2"))}, "there twice"},
		"no keys":         {audience, []link.Issuer{is("a")}, "has no key"},
		"same kid":        {audience, []link.Issuer{is("a", k, otherEd.key("k1"))}, "two keys"},
		"no kid":          {audience, []link.Issuer{is("a", edPair.key(""))}, "key id"},
		"kid with CRLF":   {audience, []link.Issuer{is("a", edPair.key("k\r\n"))}, "key id"},
		"alg none":        {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "none", Public: k.Public})}, "not supported"},
		"alg HS256":       {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "HS256", Public: []byte("secret")})}, "not supported"},
		"alg of other":    {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "ES256", Public: k.Public})}, "P-256"},
		"no public key":   {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "EdDSA"})}, "Ed25519"},
		"nil EC key":      {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "ES256", Public: (*ecdsa.PublicKey)(nil)})}, "P-256"},
		"private key":     {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "EdDSA", Public: edPair.ed})}, "PrivateKey"},
		"short key":       {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "EdDSA", Public: ed25519.PublicKey("x")})}, "Ed25519"},
		"off the curve":   {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "ES256", Public: off})}, "P-256"},
		"zero key":        {audience, []link.Issuer{is("a", link.Key{ID: "k", Algorithm: "EdDSA", Public: make(ed25519.PublicKey, 32)})}, "small order"},
		"two own":         {audience, []link.Issuer{{Name: "a", Keys: []link.Key{k}, Own: true}, {Name: "b", Keys: []link.Key{k}, Own: true}}, "only one"},
		"own signs plain": {audience, []link.Issuer{{Name: "a", Keys: []link.Key{k}, Own: true, AllowPlainJWT: true}}, "plain"},
	} {
		if _, err := link.NewTrust(c.aud, c.issuers...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
}

func TestTrustIsACopy(t *testing.T) {
	k := newEd(3).key("k1")
	keys := []link.Key{k}
	tr, err := link.NewTrust(audience, link.Issuer{Name: "acme-app", Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	clear(k.Public.(ed25519.PublicKey))
	keys[0] = otherEd.key("k1")
	_, is, err := tr.Verify(newEd(3).token(edPair.header(), goodPayload), at)
	if err != nil {
		t.Fatal(err)
	}
	if is.Keys[0].Private != nil {
		t.Fatal("the trust keeps a private key")
	}
}

func TestRefusingGarbageIsCheap(t *testing.T) {
	tr := trust(t, edPair)
	for name, s := range map[string]string{
		"dots": strings.Repeat(".", 1<<20), "letters": strings.Repeat("A", 1<<20), "braces": strings.Repeat("{", 1<<20),
	} {
		if n := testing.AllocsPerRun(100, func() {
			if _, _, err := tr.Verify(s, at); err == nil {
				t.Error("accepted")
			}
		}); n > 2 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	// The dearest thing that fits: deep, many members, a good signature
	// length. The bound is loose; it holds quadratic work off.
	dear := edPair.token(edPair.header(), with("x", strings.Repeat("[", 1200)+strings.Repeat("]", 1200)))
	start := time.Now()
	for range 100 {
		if _, _, err := tr.Verify(dear, at); err == nil {
			t.Fatal("accepted")
		}
	}
	if d := time.Since(start) / 100; d > 20*time.Millisecond {
		t.Errorf("one refusal takes %v", d)
	}
}

// FuzzVerify looks for panics, and for tokens that are accepted although an
// independent reader finds no canonical, rightly signed, timely token.
func FuzzVerify(f *testing.F) {
	tr, err := link.NewTrust(audience,
		link.Issuer{Name: "acme-app", Keys: []link.Key{edPair.key("k1")}},
		link.Issuer{Name: "portal", Keys: []link.Key{edPair.key("k1")}, Own: true})
	if err != nil {
		f.Fatal(err)
	}
	// Mode 0 verifies the input as it is; the others sign it first, as
	// payload or as header, so that the fuzzer gets past the signature.
	f.Add(uint8(0), edPair.token(edPair.header(), goodPayload))
	f.Add(uint8(1), goodPayload)
	f.Add(uint8(1), with("iss", `"portal"`, "gen", `"g1"`))
	f.Add(uint8(1), with("actor", `{"id":"a"}`, "permissions", `["a"]`, "nbf", `1800000000`, "role", `"owner"`, "x", `"\ud83d\ude00"`))
	f.Add(uint8(2), edPair.header())
	for _, h := range hostileTokens(f, edPair, "http://canary.invalid") {
		if len(h.token) < 2000 {
			f.Add(uint8(0), h.token)
			if seg := strings.Split(h.token, "."); len(seg) == 3 {
				if b, err := base64.RawURLEncoding.DecodeString(seg[1]); err == nil {
					f.Add(uint8(1), string(b))
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, mode uint8, in string) {
		switch mode % 3 {
		case 1:
			in = edPair.token(edPair.header(), in)
		case 2:
			in = edPair.token(in, goodPayload)
		}
		c, is, err := tr.Verify(in, at)
		if err != nil {
			var e *link.Error
			if !errors.As(err, &e) || e.Reason == "" {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		seg := strings.Split(in, ".")
		if len(seg) != 3 || len(in) > 4096 {
			t.Fatalf("accepted %d segments, %d bytes", len(seg), len(in))
		}
		part := make([][]byte, 3)
		for i, s := range seg {
			var err error
			if part[i], err = base64.RawURLEncoding.DecodeString(s); err != nil || b64(part[i]) != s {
				t.Fatalf("accepted segment %d that is not canonical", i)
			}
		}
		if !ed25519.Verify(edPair.public().(ed25519.PublicKey), []byte(seg[0]+"."+seg[1]), part[2]) {
			t.Fatal("accepted without a signature")
		}
		var h map[string]string
		if err := json.Unmarshal(part[0], &h); err != nil || len(h) != 3 || h["alg"] != "EdDSA" || h["kid"] != "k1" || h["typ"] != link.Type {
			t.Fatalf("accepted header %s", part[0])
		}
		// encoding/json takes the last duplicate and any case: if it reads
		// something else than Verify did, two parsers disagree.
		var p struct {
			Iss, Aud, Sub, Jti, Gen, Role string
			Iat, Exp, Nbf                 int64
			Permissions                   []string
			Actor                         struct{ ID, Email, Name any }
			Flow, Facts                   any
		}
		if err := json.Unmarshal(part[1], &p); err != nil {
			t.Fatalf("accepted payload %s: %v", part[1], err)
		}
		if p.Iss != c.Issuer || p.Iss != is.Name || p.Aud != audience || p.Sub != c.Subject || p.Jti != c.ID || p.Gen != c.Generation || p.Role != c.Role ||
			(p.Gen != "") != is.Own || p.Flow != nil || p.Facts != nil || !reflect.DeepEqual(p.Permissions, c.Permissions) {
			t.Fatalf("read %+v where another parser reads %s", c, part[1])
		}
		if p.Iat != c.IssuedAt.Unix() || p.Exp != c.Expires.Unix() || p.Exp <= p.Iat || p.Exp-p.Iat > 300 || p.Iat > at.Unix()+5 || at.Unix() >= p.Exp+5 || p.Nbf > at.Unix()+5 {
			t.Fatalf("accepted times %s", part[1])
		}
	})
}
