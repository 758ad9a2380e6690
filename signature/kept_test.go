package signature

import (
	"bytes"
	"strings"
	"testing"
)

// TestKept: an image is accepted again by what was kept of it, and not another image, nor after a bit has changed.
func TestKept(t *testing.T) {
	key := ecKey(t)
	p := policyFor(t, [][]byte{publicPEM(t, key.Public())})
	img := Image{Name: mustName(t, "r.io/a:1"), Digest: sumA, Index: sumB}
	payload := statement(signType, "", sumB)
	v, err := Verify(t.Context(), p, img, memory{list: []Signature{
		{Form: Bundle, Data: []byte("bad")},
		{
			Form: Bundle, Origin: "here", Data: newBundle(payload, signWith(t, key, pae(statementType, payload))),
			Annotations: map[string]string{"padding": strings.Repeat("x", MaxKept), annotationCert: "c"},
		},
	}})
	if err != nil || !v.Accepted || len(v.Kept()) != 1 {
		t.Fatalf("%+v, %v", v, err)
	}
	b, err := v.Kept().Encode()
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKept(b)
	if err != nil {
		t.Fatal(err)
	}
	if a := k[0].Annotations; len(a) != 1 || a[annotationCert] != "c" {
		t.Errorf("kept annotations: %.200q, want those that are used", a)
	}
	if v, err = Verify(t.Context(), p, img, k); err != nil || !v.Accepted || v.Results[0].By.Origin != "here" {
		t.Errorf("kept signatures: %+v, %v", v, err)
	}
	img.Index = ""
	if v, err = Verify(t.Context(), p, img, k); err != nil || v.Accepted || len(v.Kept()) != 0 {
		t.Errorf("signatures of another image: %+v, %v", v, err)
	}
	k[0].Data[len(k[0].Data)/2] ^= 1
	img.Index = sumB
	if v, err = Verify(t.Context(), p, img, k); err != nil || v.Accepted {
		t.Errorf("a changed signature: %+v, %v", v, err)
	}
	for _, bad := range [][]byte{nil, []byte("{}"), append(b, '{'), bytes.Repeat([]byte(" "), MaxKept+1)} {
		if _, err := ParseKept(bad); err == nil {
			t.Errorf("%.20q is parsed", bad)
		}
	}
}

func FuzzKept(f *testing.F) {
	f.Add([]byte(`{"signatures":[{"form":4,"of":"sha256:a","origin":"x","data":"eA==","annotations":{"a":"b"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseKept(data)
		if err != nil {
			return
		}
		if _, err := k.Signatures(t.Context(), nil, sumA, Bundle); err != nil {
			t.Error(err)
		}
	})
}
