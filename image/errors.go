package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

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
