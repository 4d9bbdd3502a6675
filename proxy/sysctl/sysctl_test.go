package sysctl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSet(t *testing.T) {
	file := filepath.Join(t.TempDir(), "setting")
	for _, tt := range []struct {
		have  string
		set   Setting
		want  string
		fails string
	}{
		{"1\n", Setting{Value: 2}, "2", ""},
		{"3\n", Setting{Value: 2}, "2", ""},
		{"3\n", Setting{Value: 2, Raise: true}, "3\n", ""},
		{"1\n", Setting{Value: 2, Raise: true}, "2", ""},
		{"2\n", Setting{Value: 2}, "2\n", ""}, // not written
		{"", Setting{Value: 2}, "", "this kernel has none"},
	} {
		if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if tt.have != "" {
			if err := os.WriteFile(file, []byte(tt.have), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		tt.set.Path = file
		err := tt.set.Set()
		got, _ := os.ReadFile(file)
		if string(got) != tt.want || (err != nil) != (tt.fails != "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
			t.Errorf("%q, %+v: %q, %v", tt.have, tt.set, got, err)
		}
	}
}
