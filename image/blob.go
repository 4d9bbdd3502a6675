package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// verifier passes a blob on and compares size and digest at its end: what comes after a wrong one is an error in
// place of the end of file, so nobody can take the content for good.
type verifier struct {
	r        io.Reader
	want     digest.Digest
	size     int64 // -1 if unknown
	hash     hash.Hash
	read     int64
	progress func(n int)
}

func newVerifier(r io.Reader, want digest.Digest, size int64, progress func(n int)) *verifier {
	return &verifier{r: r, want: want, size: size, hash: sha256.New(), progress: progress}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.read += int64(n)
	v.progress(n)
	if v.size >= 0 && v.read > v.size {
		return 0, fmt.Errorf("%w: blob %s has more than its %d bytes", ErrInvalidImage, v.want, v.size)
	}
	if err == io.EOF {
		if v.size >= 0 && v.read != v.size {
			return n, fmt.Errorf("%w: blob %s has %d bytes, not %d", ErrInvalidImage, v.want, v.read, v.size)
		}
		if got := digest.NewDigest(digest.SHA256, v.hash); got != v.want {
			return n, fmt.Errorf("%w: blob %s has digest %s", ErrInvalidImage, v.want, got)
		}
	}
	return n, err
}

// maxWindowBytes bounds the memory that a zstd stream may ask for: what `zstd --long` makes.
const maxWindowBytes = 128 << 20

// plainReader is the plain content of a blob. It tells the blob's own errors (the network, a wrong digest) from those
// of the compression, and reads the blob to its end even if the compressed stream ends before.
type plainReader struct {
	blob  *errorKeeper
	plain io.Reader
	close func()
}

// errorKeeper remembers what went wrong below a decompressor, which may wrap it or lose it.
type errorKeeper struct {
	r   io.Reader
	err error // other than io.EOF
}

func (k *errorKeeper) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if err != nil && err != io.EOF {
		k.err = err
	}
	return n, err
}

// decompress looks at the first bytes, since media types are often wrong, and returns the plain content.
func decompress(blob io.Reader) (*plainReader, error) {
	const peekBytes = 64 << 10
	p := &plainReader{blob: &errorKeeper{r: blob}, close: func() {}}
	br := bufio.NewReaderSize(p.blob, peekBytes)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		p.plain, err = gzip.NewReader(br)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(head):
		var zr *zstd.Decoder
		zr, err = zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindowBytes))
		if err == nil {
			p.plain, p.close = zr, zr.Close
		}
	case bytes.HasPrefix(head, []byte("BZh")):
		p.plain = bzip2.NewReader(br)
	default:
		p.plain = br
	}
	if err != nil && err != io.EOF {
		return nil, p.blame(err)
	}
	return p, nil
}

// isSkippable says whether a zstd stream begins with a frame of metadata (RFC 8878, 3.1.2), as zstd:chunked may.
func isSkippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

func (p *plainReader) Read(buf []byte) (int, error) {
	n, err := p.plain.Read(buf)
	switch err {
	case nil:
		return n, nil
	case io.EOF:
		if _, err := io.Copy(io.Discard, p.blob); err != nil {
			return n, err
		}
		return n, io.EOF
	}
	return n, p.blame(err)
}

func (p *plainReader) blame(err error) error {
	if p.blob.err != nil {
		return p.blob.err
	}
	return fmt.Errorf("%w: decompress: %w", ErrInvalidImage, err)
}

func (p *plainReader) Close() error {
	p.close()
	return nil
}

// readAhead reads from another reader in a goroutine of its own, so that decompressing and unpacking use two CPUs.
type readAhead struct {
	chunks chan chunk
	free   chan []byte
	stop   chan struct{}
	done   chan struct{}
	now    chunk // what Read gives out
	whole  []byte
}

type chunk struct {
	data []byte
	err  error // of the read after data
}

const (
	aheadBuffers = 4
	aheadBytes   = 256 << 10
)

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{
		chunks: make(chan chunk, aheadBuffers),
		free:   make(chan []byte, aheadBuffers),
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	for range aheadBuffers {
		a.free <- make([]byte, aheadBytes)
	}
	go func() {
		defer close(a.done)
		a.fill(r)
	}()
	return a
}

func (a *readAhead) fill(r io.Reader) {
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		n, err := readFull(r, buf)
		a.chunks <- chunk{buf[:n], err} // never blocks: there are no more buffers than places
		if err != nil {
			return
		}
	}
}

// readFull fills buf as far as the reader goes. A panic of a decompressor becomes an error.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: decompress: panic: %v", ErrInvalidImage, p)
		}
	}()
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.now.data) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.whole != nil {
			a.free <- a.whole
		}
		a.now = <-a.chunks
		a.whole = a.now.data[:cap(a.now.data)]
	}
	n := copy(p, a.now.data)
	a.now.data = a.now.data[n:]
	return n, nil
}

// Close waits until nothing is read any more. The reader below must have been made to fail before.
func (a *readAhead) Close() error {
	close(a.stop)
	<-a.done
	return nil
}

var errStalled = fmt.Errorf("%w: it sends nothing, or next to nothing", ErrUnavailable)

// slowestBytes must come within a stall timeout: a registry that sends a byte now and then holds the places of layers
// as one that is silent does. It is 1 KB/s with the default of a minute.
const slowestBytes = 64 << 10

// stallGuard cancels a context when too little comes. Time spent between reads does not count: that is our own disk.
type stallGuard struct {
	r       io.Reader
	timer   *time.Timer
	timeout time.Duration

	left time.Duration // to wait for what is missing of slowestBytes
	got  int
}

func newStallGuard(timeout time.Duration, cancel context.CancelCauseFunc) *stallGuard {
	return &stallGuard{
		timeout: timeout, left: timeout, timer: time.AfterFunc(timeout, func() { cancel(errStalled) }),
	}
}

func (g *stallGuard) Read(p []byte) (int, error) {
	began := time.Now()
	g.timer.Reset(g.left)
	n, err := g.r.Read(p)
	g.timer.Stop()
	g.left -= time.Since(began)
	if g.got += n; g.got >= slowestBytes {
		g.left, g.got = g.timeout, 0
	}
	return n, err
}
