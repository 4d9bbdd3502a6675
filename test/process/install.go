package process

import (
	"os"
	"testing"
)

// Install puts a copy of a program in the place of another one, as a package manager does: who runs that goes on with the old
// file.
func Install(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to+".new", data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(to+".new", to); err != nil {
		t.Fatal(err)
	}
}
