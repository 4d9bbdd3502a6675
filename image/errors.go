package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/containers/image/v5/docker"
	"github.com/docker/distribution/registry/api/errcode"

	"github.com/orlop/orlop/storage"
)

var sentinels = []error{
	ErrNotFound, ErrInUse, ErrInvalidName, ErrDenied, ErrUnavailable, ErrPolicy, ErrInvalidImage, ErrTooLarge,
}

// classify gives an error of a library the sentinel that callers branch on. What fits none stays as it is.
func classify(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return err
		}
	}
	if s := sentinelOf(err); s != nil {
		return fmt.Errorf("%w: %w", s, err)
	}
	return err
}

func sentinelOf(err error) error {
	var (
		unauthorized docker.ErrUnauthorizedForCredentials
		status       docker.UnexpectedHTTPStatusError
		coded        errcode.ErrorCoder
		network      net.Error
		request      *url.Error
	)
	switch {
	case errors.Is(err, storage.ErrInvalidLayer):
		return ErrInvalidImage
	case errors.Is(err, storage.ErrLimit):
		return ErrTooLarge
	case errors.Is(err, storage.ErrInUse):
		return ErrInUse
	case errors.As(err, &unauthorized):
		return ErrDenied
	case errors.Is(err, docker.ErrTooManyRequests):
		return ErrUnavailable
	case errors.As(err, &status):
		return sentinelOfStatus(status.StatusCode)
	case errors.As(err, &coded):
		return sentinelOfStatus(coded.ErrorCode().Descriptor().HTTPStatusCode)
	case errors.As(err, &request), errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrUnavailable
	}
	return sentinelOfText(err.Error())
}

// Errors that containers/image has no exported type for. This is the only place that reads texts of others.
var (
	statusText = regexp.MustCompile(`StatusCode: (\d{3})`) // an answer whose body is not the JSON of the API
	sizeText   = "exceeded maximum allowed size"           // of a manifest or a token
	digestText = "does not match provided manifest digest" // the registry sent another manifest
)

func sentinelOfText(text string) error {
	switch {
	case strings.Contains(text, sizeText):
		return ErrTooLarge
	case strings.Contains(text, digestText):
		return ErrInvalidImage
	}
	if m := statusText.FindStringSubmatch(text); m != nil {
		code, err := strconv.Atoi(m[1])
		if err == nil {
			return sentinelOfStatus(code)
		}
	}
	return nil
}

func sentinelOfStatus(code int) error {
	switch {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return ErrDenied
	case code == http.StatusNotFound:
		return ErrNotFound
	case code == http.StatusTooManyRequests || code >= http.StatusInternalServerError:
		return ErrUnavailable
	}
	return nil
}
