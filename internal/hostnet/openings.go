package hostnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// opening is what lets natless's packets through a firewall of another program.
// It is made with that program's own command, which would stumble over what
// somebody else put into its tables.
type opening struct {
	Tool   string `json:"tool"`            // iptables, ip6tables, either with legacySuffix, ufw or firewallCmd
	Chain  string `json:"chain,omitempty"` // of iptables
	Device string `json:"device"`
}

const (
	firewallCmd   = "firewall-cmd"
	legacySuffix  = "-legacy"
	commentPrefix = "natless " // before the device's name, in the comments of rules
)

func (o opening) comment() string { return commentPrefix + o.Device }

// String is the command for people: without a comment, by which natless would
// take the rules for its own.
func (o opening) String() string {
	switch o.Tool {
	case ufw:
		return fmt.Sprintf("ufw route allow in on %s && ufw route allow out on %s", o.Device, o.Device)
	case firewallCmd:
		return "firewall-cmd " + strings.Join(o.zone("add"), " ")
	}
	rule := o.Tool + " -I " + o.Chain
	return fmt.Sprintf("%s -i %s -j ACCEPT && %s -o %s -j ACCEPT", rule, o.Device, rule, o.Device)
}

// where names what is opened.
func (o opening) where() string { return strings.TrimSpace(o.Tool + " " + o.Chain) }

// add makes the rules that are not there yet.
func (o opening) add() error {
	switch o.Tool {
	case ufw:
		return o.addUFW()
	case firewallCmd:
		_, err := call(firewallCmd, o.zone("add")...)
		return err
	}
	for _, r := range o.iptables() {
		if there, err := o.has(r); err != nil {
			return err
		} else if there {
			continue
		}
		if _, err := call(o.Tool, o.with("-I", r)...); err != nil {
			return err
		}
	}
	return nil
}

// remove takes natless's own rules away, where they still are. A program that
// is gone has taken them along.
func (o opening) remove() error {
	switch o.Tool {
	case ufw:
		if _, err := findTool(ufw); err != nil {
			return nil
		}
		return o.removeUFW()
	case firewallCmd:
		if _, err := findTool(firewallCmd); err != nil {
			return nil
		}
		_, err := call(firewallCmd, o.zone("query")...)
		if exited(err, 1, 252) { // it is not in the zone, firewalld is not running
			return nil
		} else if err != nil {
			return err
		}
		_, err = call(firewallCmd, o.zone("remove")...)
		return err
	}
	if there, _ := marked(); !slices.Contains(there, o) {
		return nil // as when somebody has emptied the chain, or the whole ruleset
	}
	for _, r := range o.iptables() {
		for {
			if there, err := o.has(r); err != nil || !there {
				if err != nil {
					return err
				}
				break
			}
			if _, err := call(o.Tool, o.with("-D", r)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// zone are the arguments that add the device to the zone where everything is
// accepted, remove it, or query whether it is there.
func (o opening) zone(do string) []string {
	return []string{"--zone=trusted", "--" + do + "-interface=" + o.Device}
}

// iptables are the rules, one for each direction.
func (o opening) iptables() [][]string {
	rule := func(way string) []string {
		return []string{way, o.Device, "-m", "comment", "--comment", o.comment(), "-j", "ACCEPT"}
	}
	return [][]string{rule("-i"), rule("-o")}
}

// with are the arguments that do something with a rule, once others have
// finished with the tables.
func (o opening) with(do string, rule []string) []string {
	return append([]string{"-w", "5", do, o.Chain}, rule...)
}

func (o opening) has(rule []string) (bool, error) {
	_, err := call(o.Tool, o.with("-C", rule)...)
	if exited(err, 1) {
		return false, nil
	}
	return err == nil, err
}

// ufwRules are the rules as ufw shows them, but for the comment.
func (o opening) ufwRules() [][]string {
	return [][]string{{"allow", "in", "on", o.Device}, {"allow", "out", "on", o.Device}}
}

// addUFW leaves a rule alone that somebody else made: ufw would only write
// natless's comment on it.
func (o opening) addUFW() error {
	shown, err := ufwShown()
	if err != nil {
		return err
	}
	for _, r := range o.ufwRules() {
		line := "ufw route " + strings.Join(r, " ")
		if slices.ContainsFunc(shown, func(s string) bool { return s == line || strings.HasPrefix(s, line+" comment ") }) {
			continue
		}
		if _, err := call(ufw, slices.Concat([]string{"route"}, r, []string{"comment", o.comment()})...); err != nil {
			return err
		}
	}
	return nil
}

func (o opening) removeUFW() error {
	shown, err := ufwShown()
	if err != nil {
		return err
	}
	for _, r := range o.ufwRules() {
		if !slices.Contains(shown, fmt.Sprintf("ufw route %s comment '%s'", strings.Join(r, " "), o.comment())) {
			continue
		}
		if _, err := call(ufw, append([]string{"route", "delete"}, r...)...); err != nil {
			return err
		}
	}
	return nil
}

// ufwShown are the rules that ufw keeps, as it shows them, also while it is
// switched off.
func ufwShown() ([]string, error) {
	out, err := call(ufw, "show", "added")
	return strings.Split(out, "\n"), err
}

// ufwMarked finds natless's rules among those of ufw, where it can be asked.
func ufwMarked() []opening {
	shown, err := ufwShown()
	if err != nil {
		return nil
	}
	var found []opening
	for _, line := range shown {
		rule, comment, _ := strings.Cut(line, " comment '")
		device, own := strings.CutPrefix(strings.TrimSuffix(comment, "'"), commentPrefix)
		if own && strings.HasPrefix(rule, "ufw route allow ") {
			found = addOpening(found, opening{Tool: ufw, Device: device})
		}
	}
	return found
}

func addOpening(list []opening, more ...opening) []opening {
	for _, o := range more {
		if !slices.Contains(list, o) {
			list = append(list, o)
		}
	}
	return list
}

// callTimeout is how long a command may take.
const callTimeout = 30 * time.Second

// call runs a command in the network namespace of the calling thread. It is in
// a process group of its own, so that a Ctrl-C meant for natless does not stop
// it half-way.
func call(tool string, args ...string) (string, error) {
	path, err := findTool(tool)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("not done after %v", callTimeout)
		}
		said := strings.Join(strings.Fields(stderr.String()+out.String()), " ")
		return "", fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, said)
	}
	return out.String(), nil
}

// exited tells whether a command ended with one of these statuses.
func exited(err error, statuses ...int) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && slices.Contains(statuses, exit.ExitCode())
}

// toolDirs are where root's programs are.
var toolDirs = []string{"/usr/sbin", "/sbin"}

// findTool finds the program, also where root's PATH lacks root's programs. The
// tables that nftables shows are those of iptables-nft, whatever iptables is.
func findTool(tool string) (string, error) {
	names := []string{tool}
	switch plain := strings.TrimSuffix(tool, legacySuffix); {
	case plain != tool:
		names = append(names, plain)
	case plain == "iptables" || plain == "ip6tables":
		names = []string{tool + "-nft", tool}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
		for _, dir := range toolDirs {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("the command %s is not there", tool)
}

// Opened names what of others is open for natless now because natless opened
// it, such as "iptables DOCKER-USER".
func (h *Host) Opened() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []string
	for _, o := range h.rec.Opened {
		names = append(names, o.where())
	}
	return names
}

// opens lists what of a plan's firewalls natless is to open.
func opens(p Plan, found []Firewall) []opening {
	var list []opening
	if p.Manage && p.Open {
		for _, f := range found {
			if f.opening != (opening{}) {
				list = addOpening(list, f.opening)
			}
		}
	}
	return list
}

// unopenable says of what is to be opened why it cannot be.
func unopenable(list []opening) []string {
	var why []string
	for _, o := range list {
		if _, err := findTool(o.Tool); err != nil {
			why = append(why, fmt.Sprintf("opening %s, which drops forwarded packets: %v", o.where(), err))
		}
	}
	return why
}

// firewallChanges opens what drops natless's packets, where the plan says so,
// and takes back what an earlier run or plan opened.
func (h *Host) firewallChanges(v *view) []change {
	var list []change
	for _, o := range h.rec.Opened {
		if !h.plan.Open || o.Device != h.plan.Device {
			list = append(list, change{
				key: "firewall " + o.where(), text: fmt.Sprintf("close %s for %s again", o.where(), o.Device),
				do: func() error { return h.rec.close(o) },
			})
		}
	}
	if !h.plan.Open {
		return list
	}
	for _, o := range opens(h.plan, firewalls(v, h.plan)) {
		list = append(list, change{
			key: "firewall " + o.where(), text: fmt.Sprintf("open %s: %v", o.where(), o),
			again: slices.Contains(h.rec.Opened, o),
			do:    func() error { return h.open(o) },
		})
	}
	return list
}

// open writes down what it opens, and looks whether that was enough.
func (h *Host) open(o opening) error {
	if !slices.Contains(h.rec.Opened, o) {
		h.rec.Opened = append(h.rec.Opened, o)
		if err := h.rec.save(); err != nil {
			return err
		}
	}
	if err := o.add(); err != nil {
		return err
	}
	v, err := look()
	if err != nil {
		return err
	}
	if slices.Contains(opens(h.plan, firewalls(v, h.plan)), o) {
		return errors.New("the rules are in place, and packets are still dropped before them")
	}
	return nil
}

// close removes what was opened, and forgets it.
func (r *record) close(o opening) error {
	if err := o.remove(); err != nil {
		return err
	}
	r.Opened = slices.DeleteFunc(r.Opened, func(other opening) bool { return other == o })
	return r.save()
}

// adopt adds to the record what bears natless's comment, as what ufw has kept
// over a reboot.
func (r *record) adopt() {
	found, inUFW := marked()
	r.Opened = addOpening(r.Opened, found...)
	if inUFW {
		r.Opened = addOpening(r.Opened, ufwMarked()...)
	}
}

// undoFirewalls closes what was opened and is still open.
func undoFirewalls(rec *record) (done []string, err error) {
	rec.adopt()
	var errs []error
	for _, o := range slices.Clone(rec.Opened) {
		if err := rec.close(o); err != nil {
			errs = append(errs, fmt.Errorf("closing %s for %s again: %w", o.where(), o.Device, err))
			continue
		}
		done = append(done, fmt.Sprintf("closed %s for %s again", o.where(), o.Device))
	}
	return done, errors.Join(errs...)
}
