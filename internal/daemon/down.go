package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"

	"github.com/natless/natless/internal/attach"
	"github.com/natless/natless/internal/lockfile"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/mapping/store"
)

// left is the state of a daemon that is gone.
type left struct{ *store.Store }

// Detach forgets an attachment. Its lease is one like others when a daemon comes
// again, and ends by being idle.
func (l left) Detach(_ context.Context, id string) (a mapping.Attachment, err error) {
	return a, l.Save(mapping.Batch{RemoveAttachments: []string{id}})
}

// DetachAll takes back what attach did from this network namespace, by the state
// that a daemon has left in a directory, and tells in lines what that was. Of a
// state that somebody uses it is not asked.
func DetachAll(ctx context.Context, dir string, wait lockfile.Wait) (lines []string, err error) {
	if dir == "" || !store.Exists(dir) {
		return nil, nil
	}
	// No history is forgotten for this.
	s, err := store.Open(dir, math.MaxInt64, slog.New(slog.DiscardHandler))
	if errors.Is(err, store.ErrInUse) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	saved, err := s.Load()
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	var errs []error
	for _, a := range saved.Attachments {
		done, err := attach.Undo(ctx, left{s}, a, gone(a), wait)
		lines, errs = append(lines, done...), append(errs, err)
	}
	return append(lines, s.Problems()...), errors.Join(errs...)
}
