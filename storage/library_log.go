package storage

import (
	"context"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// libraryLog passes on what containers/storage and containers/image log. They use a global logger of their own, which
// would write to standard error in another format.
type libraryLog struct{ log *slog.Logger }

// takeLibraryLog directs the libraries' messages to log, from warnings on.
func takeLibraryLog(log *slog.Logger) {
	hooks := logrus.LevelHooks{}
	hooks.Add(libraryLog{log})
	logrus.StandardLogger().ReplaceHooks(hooks)
	logrus.SetOutput(io.Discard)
}

func (libraryLog) Levels() []logrus.Level {
	return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel, logrus.FatalLevel, logrus.PanicLevel}
}

// Fire gives out no error of a library as ours: one that matters to a caller is returned to it as well.
func (l libraryLog) Fire(e *logrus.Entry) error {
	l.log.Log(context.Background(), slog.LevelWarn, "storage library", "text", e.Message)
	return nil
}
