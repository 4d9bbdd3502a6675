package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

var errNetwork = errors.New("connection reset")

// failing fails after what it holds.
type failing struct{ r io.Reader }

func (f failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err == io.EOF {
		err = errNetwork
	}
	return n, err
}

// read takes a blob the way of a layer: digest, decompression, read-ahead.
func read(r io.Reader, want digest.Digest, size int64) ([]byte, error) {
	plain, err := decompress(newVerifier(r, want, size, func(int) {}))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	ahead := newReadAhead(plain)
	defer ahead.Close()
	return io.ReadAll(io.LimitReader(ahead, 8<<20))
}

func TestBlobErrors(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 100_000) // several buffers
	for _, compress := range []string{"", "gzip", "zstd"} {
		blob, _ := squeeze(t, layerSpec{content, compress})
		d, size := digest.FromBytes(blob), int64(len(blob))
		flipped := bytes.Clone(blob)
		flipped[len(blob)/2] ^= 1
		for name, tt := range map[string]struct {
			r    io.Reader
			d    digest.Digest
			size int64
			want error
		}{
			"good":            {bytes.NewReader(blob), d, size, nil},
			"size unknown":    {bytes.NewReader(blob), d, -1, nil},
			"network fails":   {failing{bytes.NewReader(blob[:len(blob)/2])}, d, size, errNetwork},
			"cut":             {bytes.NewReader(blob[:len(blob)/2]), d, size, ErrInvalidImage},
			"cut, signed so":  {bytes.NewReader(blob[:len(blob)/2]), digest.FromBytes(blob[:len(blob)/2]), -1, ErrInvalidImage},
			"bit flipped":     {bytes.NewReader(flipped), d, size, ErrInvalidImage},
			"more than said":  {bytes.NewReader(append(bytes.Clone(blob), 0)), d, size, ErrInvalidImage},
			"another digest":  {bytes.NewReader(blob), digest.FromString("other"), size, ErrInvalidImage},
			"nothing at once": {failing{bytes.NewReader(nil)}, d, size, errNetwork},
		} {
			if compress == "" && name == "cut, signed so" {
				continue // a plain layer that was cut is found by its diff ID
			}
			got, err := read(tt.r, tt.d, tt.size)
			if !errors.Is(err, tt.want) || (tt.want == nil && !bytes.Equal(got, content)) {
				t.Errorf("%q, %s: %d bytes, err = %v; want %v", compress, name, len(got), err, tt.want)
			}
		}
	}
}

// FuzzBlob: arbitrary bytes end in an error of ours or in content, and never get past a wrong digest.
func FuzzBlob(f *testing.F) {
	for _, compress := range []string{"", "gzip", "zstd"} {
		blob, _ := squeeze(f, layerSpec{[]byte("content of a layer"), compress})
		f.Add(blob)
	}
	f.Add([]byte("BZh91AY&SY"))
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, blob []byte) {
		if _, err := read(bytes.NewReader(blob), digest.FromBytes(blob), int64(len(blob))); err != nil && !errors.Is(err, ErrInvalidImage) {
			t.Errorf("err = %v", err)
		}
		if got, err := read(bytes.NewReader(blob), digest.FromString("other blob"), -1); err == nil && len(got) < 8<<20 {
			t.Error("a wrong digest was taken")
		}
	})
}

// trickle gives so many bytes after each pause.
type trickle struct {
	pause time.Duration
	n     int
}

func (r trickle) Read(p []byte) (int, error) {
	time.Sleep(r.pause)
	return min(r.n, len(p)), nil
}

func TestStallGuard(t *testing.T) {
	for _, tt := range []struct {
		name    string
		r       trickle
		stalled bool
	}{
		{"a byte now and then", trickle{time.Second, 1}, true},
		{"slow", trickle{50 * time.Second, slowestBytes}, false},
		{"slow in small pieces", trickle{time.Second, slowestBytes / 50}, false},
		{"silent", trickle{2 * time.Minute, slowestBytes}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				g := newStallGuard(time.Minute, cancel)
				g.r = tt.r
				buf := make([]byte, 1<<20)
				for range 500 {
					if _, err := g.Read(buf); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Minute) // our own disk
				}
				if stalled := errors.Is(context.Cause(ctx), errStalled); stalled != tt.stalled {
					t.Errorf("stalled: %v, want %v", stalled, tt.stalled)
				}
				g.timer.Stop()
			})
		})
	}
}
