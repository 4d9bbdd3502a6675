package cni

import (
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
)

// FuzzParseResult finds no output of a plugin from which a pod gets an address that is none.
func FuzzParseResult(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24","interface":1}],"interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/x"}]}`,
		`{"cniVersion":"0.4.0","ips":[{"version":"6","address":"fd00::1/64","interface":-7}]}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/8"}}`, `{"cniVersion":"1.1.0","ips":[null]}`, `{"ips":{}}`, `null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, output []byte) {
		if checkOutput("", output) != nil {
			return
		}
		raw, err := create.CreateFromBytes(output)
		if err != nil {
			return
		}
		for _, version := range []string{"0.2.0", "0.4.0", "1.0.0", "1.1.0"} { // as the library does with what it kept
			_, _ = raw.GetAsVersion(version)
		}
		got, err := parseResult("net", raw)
		if (err == nil) != (len(got.IPs) > 0) {
			t.Errorf("%+v, %v", got, err)
		}
		for _, ip := range got.IPs {
			if !ip.IsValid() || ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || ip.Is4In6() {
				t.Errorf("%q: address %s", output, ip)
			}
		}
	})
}
