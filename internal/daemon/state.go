package daemon

import (
	"fmt"
	"log/slog"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/mapping/store"
)

// saved is what outlives the daemon; with no store, nothing does.
type saved struct{ store *store.Store }

// openStore opens state.dir before anything on the host is touched.
func openStore(c config.State, log *slog.Logger) (*saved, error) {
	if c.Dir == "" {
		return &saved{}, nil
	}
	s, err := store.Open(c.Dir, c.History, log)
	if err != nil {
		return nil, fmt.Errorf("state.dir %s: %w", c.Dir, err)
	}
	return &saved{s}, nil
}

// asStore is the store for the table, or nil.
func (s *saved) asStore() mapping.Store {
	if s.store == nil {
		return nil
	}
	return s.store
}

func (s *saved) close() error {
	if s.store == nil {
		return nil
	}
	if err := s.store.Close(); err != nil {
		return fmt.Errorf("closing the state: %w", err)
	}
	return nil
}

// problems are what the store has to say. That a file was set aside keeps
// natless from nothing it was asked for.
func (s *saved) problems() []string {
	if s.store == nil {
		return nil
	}
	return s.store.Problems()
}

// stateProblem says why nothing can be saved now; "" if it can.
func (d *daemon) stateProblem() string {
	if problem := d.table.StoreProblem(); problem != "" || d.saved.store == nil {
		return problem
	}
	if err := d.saved.store.ReadOnly(); err != nil {
		return err.Error()
	}
	return ""
}
