package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Changes are what attach makes of a namespace, and of the host for it. It is
// written down before any of it is done, and says all that undoing takes.
type Changes struct {
	Link     *Link    `json:"link,omitempty"`
	Route    *Route   `json:"route,omitempty"`
	Sysctls  []Sysctl `json:"sysctls,omitempty"`
	Resolver *File    `json:"resolver,omitempty"`
}

// beforeStep lets tests stop attach dead at any step.
var beforeStep = func(string) {}

// Make does all of it, and stops at the first error: then Undo takes back what
// was done.
func (c *Changes) Make(n *Namespace) error {
	outside, err := host()
	if err != nil {
		return err
	}
	defer outside.Close()
	step := func(what string, do func() error) {
		if err == nil {
			beforeStep(what)
			if err = do(); err != nil {
				err = fmt.Errorf("%s: %w", what, err)
			}
		}
	}
	if l := c.Link; l != nil {
		step("making link "+l.Host, func() error { return l.make(outside, n) })
	}
	if r := c.Route; r != nil {
		step(fmt.Sprintf("adding the route to %v", r.To), func() error { return r.add(n) })
	}
	for _, s := range c.Sysctls {
		step("setting "+s.text(s.Set), func() error { return n.setSysctl(s.Name, s.Set) })
	}
	if f := c.Resolver; f != nil {
		step("pointing "+f.Path, f.point)
	}
	return err
}

func (s Sysctl) text(value string) string {
	return strings.ReplaceAll(s.Name, "/", ".") + " = " + strings.Join(strings.Fields(value), " ")
}

// Undo takes back what is still as Make left it, all of which may not have been
// done; a second time it does nothing. n is nil where the namespace is gone, and
// nothing is left to undo inside. The lines say what others have changed since,
// which stays. Whatever fails, it goes on with the rest.
func (c *Changes) Undo(n *Namespace) (stays []string, err error) {
	var errs []error
	step := func(what string, do func() error) {
		beforeStep(what)
		if err := do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if f := c.Resolver; f != nil && (n != nil || f.PID == 0) {
		step("restoring "+f.Path, func() error {
			line, err := f.restore()
			if line != "" {
				stays = append(stays, line)
			}
			return err
		})
	}
	if n != nil {
		lines, err := c.undoInside(n, step)
		stays, errs = append(stays, lines...), append(errs, err)
	}
	if l := c.Link; l != nil {
		step("removing link "+l.Host, func() error {
			outside, err := host()
			if err != nil {
				return err
			}
			defer outside.Close()
			return l.remove(outside)
		})
	}
	return stays, errors.Join(errs...)
}

func (c *Changes) undoInside(n *Namespace, step func(string, func() error)) (stays []string, err error) {
	for i := len(c.Sysctls) - 1; i >= 0; i-- {
		s := c.Sysctls[i]
		step("setting back "+s.text(s.Was), func() error {
			now, err := n.sysctl(s.Name)
			switch {
			case errors.Is(err, fs.ErrNotExist) || err == nil && now == s.Was:
				return nil
			case err != nil:
				return err
			case now != s.Set:
				stays = append(stays, s.text(now)+" was set by others")
				return nil
			}
			return n.setSysctl(s.Name, s.Was)
		})
	}
	if r := c.Route; r != nil {
		step(fmt.Sprintf("removing the route to %v", r.To), func() error { return r.remove(n) })
	}
	return stays, nil
}
