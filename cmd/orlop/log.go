package main

import (
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"

	"github.com/orlop/orlop/internal/config"
)

// newLogger makes the daemon's log, and leads into it what containers/image and containers/storage say through
// logrus, so that the log has one form.
func newLogger(c config.Config, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo // Validate refused all that does not parse
	}
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, options)
	if c.LogFormat == "json" {
		h = slog.NewJSONHandler(w, options)
	}
	log := slog.New(h)
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrusLevel(level))
	logrus.AddHook(logrusHook{log})
	return log
}

func logrusLevel(level slog.Level) logrus.Level {
	switch {
	case level <= slog.LevelDebug:
		return logrus.DebugLevel
	case level <= slog.LevelInfo:
		return logrus.InfoLevel
	case level <= slog.LevelWarn:
		return logrus.WarnLevel
	}
	return logrus.ErrorLevel
}

type logrusHook struct{ log *slog.Logger }

func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire is called with logrus's own lock held; slog takes another and calls nothing back.
func (h logrusHook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	case logrus.WarnLevel:
		level = slog.LevelWarn
	case logrus.InfoLevel:
		level = slog.LevelInfo
	}
	attrs := []any{"from", "containers/image or containers/storage"}
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	h.log.Log(e.Context, level, e.Message, attrs...)
	return nil
}
