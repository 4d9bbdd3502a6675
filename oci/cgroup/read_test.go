package cgroup

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"
)

// FuzzNumbers finds no text that two readers understand differently.
func FuzzNumbers(f *testing.F) {
	for _, seed := range []string{"0\n", "18446744073709551615", "18446744073709551616", "max\n", "-1", "1 2", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := number(data)
		want, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 64)
		if ok != (err == nil) || ok && got != want {
			t.Errorf("number(%q) = %d, %v; want %d, %v", data, got, ok, want, err)
		}
	})
}

// FuzzValue finds the key's number, whatever stands around it.
func FuzzValue(f *testing.F) {
	f.Add([]byte("file 700\ninactive_filex 4\n"), uint64(400))
	f.Fuzz(func(t *testing.T, around []byte, n uint64) {
		if bytes.Contains(around, []byte("inactive_file ")) {
			return
		}
		data := append(bytes.TrimRight(around, "\n"), fmt.Sprintf("\ninactive_file %d\npgfault 3", n)...)
		if got := value(data, "inactive_file"); got != n {
			t.Errorf("value(%q) = %d, want %d", data, got, n)
		}
	})
}

// FuzzPSI reads back what the kernel would write, and any other bytes without harm.
func FuzzPSI(f *testing.F) {
	f.Add([]byte("some avg10= total=x\n\nfull"), uint64(1234), 1.5)
	f.Fuzz(func(t *testing.T, garbage []byte, total uint64, share float64) {
		parsePSI(garbage)
		share = float64(int64(share*100)%10000) / 100
		text := fmt.Sprintf("some avg10=%.2f avg60=0.00 avg300=0.00 total=%d\nfull avg10=0.00 avg60=%.2f avg300=0.00 total=0\n", share, total, share)
		got := parsePSI([]byte(text))
		want := PSI{Some: PSILine{TotalMicros: total, Avg10: share}, Full: PSILine{Avg60: share}}
		if *got != want {
			t.Errorf("%+v, want %+v from %q", *got, want, text)
		}
	})
}
