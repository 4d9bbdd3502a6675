package stream

import (
	"crypto/rand"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
)

const (
	tokenTime = time.Minute // from the RPC's answer to the client's connection
	maxTokens = 1000        // that wait for their client; beyond it, the oldest are dropped
)

// tokens are requests that have been answered with a URL and wait for the client to open it.
type tokens struct {
	mu     sync.Mutex // guards what follows
	byText map[string]proto.Message
	queue  []token // oldest first; also those that have been taken
}

type token struct {
	text    string
	expires time.Time
}

func newTokens() *tokens { return &tokens{byText: map[string]proto.Message{}} }

// put returns a token for a request: 128 bits that nobody can guess.
func (t *tokens) put(req proto.Message) string {
	text := rand.Text()
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.queue) > 0 && (len(t.queue) >= maxTokens || now.After(t.queue[0].expires)) {
		delete(t.byText, t.queue[0].text)
		t.queue = t.queue[1:]
	}
	t.byText[text] = req
	t.queue = append(t.queue, token{text, now.Add(tokenTime)})
	return text
}

// take gives up the request of a token, once; nil if there is none any more.
func (t *tokens) take(text string) proto.Message {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.queue) > 0 && now.After(t.queue[0].expires) {
		delete(t.byText, t.queue[0].text)
		t.queue = t.queue[1:]
	}
	req := t.byText[text]
	delete(t.byText, text)
	return req
}
