package stream

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := newTokens()
		req := &cri.ExecRequest{ContainerId: "a"}
		text := tokens.put(req)
		if tokens.take("another") != nil {
			t.Error("a token that was never given was taken")
		}
		if got := tokens.take(text); !proto.Equal(got, req) {
			t.Errorf("%v", got)
		}
		if tokens.take(text) != nil {
			t.Error("a token was taken twice")
		}
		early := tokens.put(req)
		time.Sleep(tokenTime / 2)
		late := tokens.put(req)
		time.Sleep(tokenTime/2 + time.Second)
		if tokens.take(early) != nil {
			t.Error("a token was taken too late")
		}
		if tokens.take(late) == nil {
			t.Error("a token did not live as long as it should")
		}
	})
}

// Who asks for URLs and never opens them fills no memory.
func TestTokensAreBounded(t *testing.T) {
	tokens := newTokens()
	var all []string
	for i := range 3 * maxTokens {
		all = append(all, tokens.put(&cri.ExecRequest{ContainerId: fmt.Sprint(i)}))
	}
	if len(tokens.byText) > maxTokens || len(tokens.queue) > maxTokens {
		t.Errorf("%d tokens, a queue of %d", len(tokens.byText), len(tokens.queue))
	}
	if tokens.take(all[0]) != nil || tokens.take(all[len(all)-1]) == nil {
		t.Error("not the oldest were dropped")
	}
}
