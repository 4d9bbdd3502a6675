package backoff

import (
	"testing"
	"time"
)

func TestDelays(t *testing.T) {
	d := New(10*time.Second, 5*time.Minute)
	at := time.Unix(1_800_000_000, 0)
	if left := d.Left("u", "c", at, at); left != 0 {
		t.Errorf("before any failure: %s", left)
	}
	for i, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		if got := d.Failed("u", "c", at, at); got != want*time.Second {
			t.Errorf("failure %d: %s, want %s", i, got, want*time.Second)
		}
		at = at.Add(time.Minute)
	}
	if left := d.Left("u", "c", at, at.Add(100*time.Second)); left != 200*time.Second {
		t.Errorf("100 s into 300: %s left", left)
	}
	if left := d.Left("u", "c", at, at.Add(301*time.Second)); left != 0 {
		t.Errorf("after 301 s: %s left", left)
	}
	if left := d.Left("u", "other", at, at); left != 0 {
		t.Errorf("another container: %s", left)
	}
	later := at.Add(11 * time.Minute)
	if left := d.Left("u", "c", later, later); left != 0 {
		t.Errorf("it did well for 11 min, and must wait %s", left)
	}
	if got := d.Failed("u", "c", later, later); got != 10*time.Second {
		t.Errorf("it did well for 11 min, and begins with %s", got)
	}
	d.Forget("u")
	if got := d.Failed("u", "c", later, later); got != 10*time.Second {
		t.Errorf("a forgotten pod begins with %s", got)
	}
}

// TestStable: what ran for ten minutes begins anew, however short the longest delay is. The time that it waited is none that it ran.
func TestStable(t *testing.T) {
	for _, tt := range []struct {
		last, ran time.Duration
		want      time.Duration
	}{
		{time.Second, 5 * time.Second, time.Second},
		{time.Second, 11 * time.Minute, 0},
		{5 * time.Minute, 9 * time.Minute, 20 * time.Second},
		{5 * time.Minute, 11 * time.Minute, 0},
	} {
		d := New(min(10*time.Second, tt.last), tt.last)
		at := time.Unix(1_800_000_000, 0)
		d.Failed("u", "c", at, at)
		ended := at.Add(tt.ran)
		d.Failed("u", "c", ended, ended.Add(tt.last))
		again := ended.Add(tt.last)
		if got := d.Left("u", "c", again, again); tt.want != 0 && got != tt.want {
			t.Errorf("ran for %s, last delay %s: waits %s, want %s", tt.ran, tt.last, got, tt.want)
		} else if tt.want == 0 && got != min(10*time.Second, tt.last) {
			t.Errorf("ran for %s, last delay %s: waits %s, want the first delay", tt.ran, tt.last, got)
		}
	}
}
