package login

import (
	"testing"
)

func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		pattern, image string
		want           bool
	}{
		{"example.com", "example.com/a/b:1", true},
		{"https://example.com", "example.com/a", true},
		{"example.com/a", "example.com/a/b", true},
		{"example.com/b", "example.com/a/b", false},
		{"*.example.com", "eu.example.com/a", true},
		{"*.example.com", "example.com/a", false},
		{"*.example.com", "x.eu.example.com/a", false},
		{"example.com:5000", "example.com:5000/a", true},
		{"example.com", "example.com:5000/a", false},
		{"https://index.docker.io/v1/", "nginx", true},
		{"docker.io", "library/nginx", true},
		{"docker.io", "localhost/nginx", false},
		{"example.com", "evil.com/example.com/a", false},
	} {
		if got := Covers(tt.pattern, tt.image); got != tt.want {
			t.Errorf("Covers(%q, %q) = %v", tt.pattern, tt.image, got)
		}
	}
}

func TestRepository(t *testing.T) {
	for _, tt := range []struct{ image, repository, host string }{
		{"nginx", "docker.io/library/nginx", "docker.io"},
		{"team/app:1", "docker.io/team/app", "docker.io"},
		{"localhost:5000/a/b:1@sha256:0", "localhost:5000/a/b", "localhost:5000"},
		{"example.com/a@sha256:0", "example.com/a", "example.com"},
	} {
		if repository, host := Repository(tt.image); repository != tt.repository || host != tt.host {
			t.Errorf("Repository(%q) = %q, %q", tt.image, repository, host)
		}
	}
}

// TestFor: of several logins for one registry each is tried, those of the first source before the others'.
func TestFor(t *testing.T) {
	a := Keyring{"example.com": {Username: "a"}, "example.com/team": {Username: "team"}, "other.com": {Username: "x"}}
	b := Keyring{"example.com": {Auth: "Yjpw"}, "example.com/team": {Username: "team"}}
	var got []string
	for _, auth := range For("example.com/team/app:1", a, b) {
		got = append(got, auth.Username)
	}
	if len(got) != 3 || got[0] != "team" || got[1] != "a" || got[2] != "b" {
		t.Errorf("%v, want team, a, b", got)
	}
}
