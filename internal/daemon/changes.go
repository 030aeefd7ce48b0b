package daemon

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natless/natless/mapping"
)

// A table of explicit mappings and leases in memory takes no changes from the
// control socket: they are refused by name.

func (d *daemon) Change([]mapping.Change, string) (uint64, error) {
	return 0, fmt.Errorf("changing the mapping table: %w", mapping.ErrUnavailable)
}

func (d *daemon) Release(a netip.Addr, _ string) (lease mapping.Lease, err error) {
	return lease, fmt.Errorf("releasing %v: %w", a, mapping.ErrUnavailable)
}

func (d *daemon) Reload(string) ([]string, error) {
	return nil, fmt.Errorf("reloading the configuration: %w", mapping.ErrUnavailable)
}

func (d *daemon) LeasesAt(at time.Time, _ func(any) bool) error {
	return fmt.Errorf("leases at %s: %w", at.Format(time.RFC3339), mapping.ErrUnavailable)
}

func (d *daemon) Events(after uint64, _ int) ([]mapping.Event, error) {
	return nil, fmt.Errorf("changes after revision %d: %w", after, mapping.ErrUnavailable)
}

func (d *daemon) Revision() uint64         { return d.table.Revision() }
func (d *daemon) Changed() <-chan struct{} { return make(chan struct{}) }
