// Package wire carries calls, answers and notifications, with file descriptors, over a unix stream socket. Both ends
// may call. It is what the daemon, the worker and the keeper speak to each other.
//
//	frame = header length (4 bytes, little endian) | body length (4) | header (JSON) | body (JSON)
//
// Descriptors travel with the first byte of their frame; the kernel keeps their order (unix(7)), and the header says
// how many belong to the frame.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxHeader = 64 << 10
	// maxBody bounds what one frame may carry: an OCI spec, far from the 16 MiB of a CRI message that it came from.
	maxBody = 32 << 20
	// MaxFiles is the kernel's limit (SCM_MAX_FD) for one message.
	MaxFiles = 253
)

type header struct {
	ID     uint64 `json:"id,omitempty"`     // the call; 0 in a notification
	Method string `json:"method,omitempty"` // "" in an answer
	Code   string `json:"code,omitempty"`   // of an error answer, for errors that the caller branches on
	Error  string `json:"error,omitempty"`
	Files  int    `json:"files,omitempty"`
}

type frame struct {
	header
	body  []byte
	files []*os.File
}

// conn reads and writes frames. Reads belong to one goroutine; writes are locked.
type conn struct {
	socket *net.UnixConn

	in    []byte     // read and not yet part of a frame
	inFDs []*os.File // received and not yet part of a frame
	chunk []byte
	oob   []byte

	mu sync.Mutex // guards writes
}

func newConn(socket *net.UnixConn) *conn {
	return &conn{socket: socket, chunk: make([]byte, 16<<10), oob: make([]byte, unix.CmsgSpace(MaxFiles*4))}
}

func (c *conn) close() error { return c.socket.Close() }

// errTooLarge is of one frame: nothing of it has been sent, and the connection goes on.
var errTooLarge = errors.New("message exceeds the limit")

// write sends one frame. The caller keeps its files. After an error that is ErrClosed nothing more can be sent.
func (c *conn) write(f frame) error {
	if len(f.files) > MaxFiles {
		return fmt.Errorf("%d descriptors in one message, at most %d", len(f.files), MaxFiles)
	}
	f.Files = len(f.files)
	head, err := json.Marshal(f.header)
	if err != nil {
		return err
	}
	if len(head) > maxHeader || len(f.body) > maxBody { // the reader would end the connection, and everybody's calls
		return fmt.Errorf("%w: %d+%d bytes", errTooLarge, len(head), len(f.body))
	}
	out := make([]byte, 8, 8+len(head)+len(f.body))
	binary.LittleEndian.PutUint32(out, uint32(len(head)))
	binary.LittleEndian.PutUint32(out[4:], uint32(len(f.body)))
	out = append(append(out, head...), f.body...)

	var oob []byte
	if len(f.files) > 0 {
		fds := make([]int, len(f.files))
		for i, file := range f.files {
			if fds[i], err = rawFD(file); err != nil {
				return err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, _, err := c.socket.WriteMsgUnix(out, oob, nil)
	if err == nil && n < len(out) {
		_, err = c.socket.Write(out[n:])
	}
	for _, file := range f.files {
		keepAlive(file)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

// read returns the next frame; io.EOF if the other end is gone.
func (c *conn) read() (frame, error) {
	if err := c.fill(8); err != nil {
		return frame{}, err
	}
	headLen, bodyLen := binary.LittleEndian.Uint32(c.in), binary.LittleEndian.Uint32(c.in[4:])
	if headLen > maxHeader || bodyLen > maxBody {
		return frame{}, fmt.Errorf("frame of %d+%d bytes exceeds the limit", headLen, bodyLen)
	}
	end := 8 + int(headLen) + int(bodyLen)
	if err := c.fill(end); err != nil {
		return frame{}, err
	}
	var f frame
	if err := json.Unmarshal(c.in[8:8+headLen], &f.header); err != nil {
		return frame{}, fmt.Errorf("frame header: %w", err)
	}
	f.body = append([]byte(nil), c.in[8+headLen:end]...)
	if f.Files < 0 || f.Files > len(c.inFDs) {
		return frame{}, fmt.Errorf("frame %q announces %d descriptors, %d came", f.Method, f.Files, len(c.inFDs))
	}
	f.files = append(f.files, c.inFDs[:f.Files]...)
	c.inFDs = c.inFDs[f.Files:]
	c.in = c.in[end:]
	if len(c.in) == 0 {
		c.in = nil // a large frame's buffer does not stay
	}
	return f, nil
}

// fill reads until in holds n bytes.
func (c *conn) fill(n int) error {
	for len(c.in) < n {
		got, oobn, flags, _, err := c.socket.ReadMsgUnix(c.chunk, c.oob)
		if err != nil {
			return err
		}
		if err := c.takeFiles(c.oob[:oobn]); err != nil {
			return err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return errors.New("descriptors were lost: the limit of open files is too low")
		}
		if got == 0 {
			if len(c.in) > 0 {
				return io.ErrUnexpectedEOF
			}
			return io.EOF
		}
		c.in = append(c.in, c.chunk[:got]...)
	}
	return nil
}

func (c *conn) takeFiles(oob []byte) error {
	if len(oob) == 0 {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // credentials, if anybody ever asks for them
		}
		for _, fd := range fds {
			c.inFDs = append(c.inFDs, os.NewFile(uintptr(fd), "received"))
		}
	}
	return nil
}

func (c *conn) closeFiles() {
	for _, f := range c.inFDs {
		f.Close()
	}
	c.inFDs = nil
}

// rawFD is the number of a file's descriptor, without what [os.File.Fd] does: put it into blocking mode.
func rawFD(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	err = raw.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}
