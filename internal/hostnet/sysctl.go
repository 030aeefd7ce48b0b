package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// procNet is where the kernel shows the sysctls of the calling thread's
// network namespace.
const procNet = "/proc/sys/net"

// sysctlPath is the file of a setting in net.FAMILY.conf.LINK.
func sysctlPath(family, link, key string) string {
	return filepath.Join(procNet, family, "conf", link, key)
}

func readSysctl(path string) (value string, ok bool) {
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err == nil
}

func writeSysctl(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// setting is a sysctl that natless changed.
type setting struct {
	Family string `json:"family"` // ipv4, ipv6
	Index  int    `json:"index"`  // of the link, whose name may change; 0: all links
	Key    string `json:"key"`
	Was    string `json:"was"`
	Set    string `json:"set"`
	AllWas string `json:"all_was"`        // the same key of conf/all: when that changes, it changes all links
	Kept   []int  `json:"kept,omitempty"` // of one for all links: those that had it before
}

// the settings natless may change.
const (
	keyForwarding      = "forwarding"
	keyAcceptRA        = "accept_ra"
	keyAutoconf        = "autoconf"
	keyAcceptRedirects = "accept_redirects"
	keyDisableIPv6     = "disable_ipv6"
	keySendRedirects   = "send_redirects"
	keyNDISCNotify     = "ndisc_notify"
	keyRPFilter        = "rp_filter"
	yes, no            = "1", "0"
	strict             = "1" // rp_filter: the larger of a link's and that of all counts
	loose              = "2" // rp_filter: any route back will do
	acceptRA           = "1" // accept_ra: unless forwarding
	acceptRAForwarding = "2" // accept_ra: even when forwarding
	allLinks           = "all"
	newLinks           = "default" // what a link has when it is made
)

// keyForceForwarding lets IPv6 packets in from one link be forwarded, since
// Linux 6.17. A variable, so that tests see natless without it: those that run
// the binary by its environment.
var keyForceForwarding = forceForwarding(os.Getenv(olderKernelEnv))

// olderKernelEnv, set to anything, has natless do without force_forwarding. For
// tests alone; it opens nothing.
const olderKernelEnv = "NATLESS_TEST_OLDER_KERNEL"

func forceForwarding(older string) string {
	if older != "" {
		return "no_such_setting"
	}
	return "force_forwarding"
}

// name is that of the setting's link at present, or false when it is gone.
func (s setting) name(v *view) (string, bool) {
	if s.Index == 0 {
		return allLinks, true
	}
	l, ok := v.links[s.Index]
	return l.name, ok
}

func (s setting) same(o setting) bool {
	return s.Family == o.Family && s.Index == o.Index && s.Key == o.Key
}

func (s setting) text(link, value string) string {
	return fmt.Sprintf("net.%s.conf.%s.%s = %s", s.Family, link, s.Key, value)
}

func (r *record) find(s setting) int { return slices.IndexFunc(r.Settings, s.same) }

// want is the change that gives a setting its value, or none when it has it or
// the kernel lacks it.
func (h *Host) want(v *view, s setting) []change {
	name, present := s.name(v)
	from := name
	if s.Index == missing {
		name, from, present = h.plan.Device, newLinks, true
	}
	now, readable := readSysctl(sysctlPath(s.Family, from, s.Key))
	if !present || !readable || now == s.Set {
		return nil
	}
	path := sysctlPath(s.Family, name, s.Key)
	return []change{{key: s.id(), text: "set " + s.text(name, s.Set), again: h.rec.find(s) >= 0, do: func() error {
		if err := h.note(v, s, now); err != nil {
			return err
		}
		h.claims.ignore(s)
		err := writeSysctl(path, s.Set)
		if errors.Is(err, fs.ErrNotExist) && s.Index != 0 {
			return nil // the link went, or this kernel has no such setting
		}
		if err == nil && s.Index != h.device {
			h.claims.watch(s, path)
		}
		return err
	}}}
}

// id tells one setting from the others. A link that comes under the name of one
// that went is another.
func (s setting) id() string { return fmt.Sprintf("sysctl %s %d %s", s.Family, s.Index, s.Key) }

// note writes down what a setting was. What was noted before stays: a setting
// put back is still the one that was found at first.
func (h *Host) note(v *view, s setting, now string) error {
	h.rec.Settings = slices.DeleteFunc(h.rec.Settings, func(o setting) bool {
		_, there := o.name(v)
		return !there // its link went, and the setting with it
	})
	s.Was = now
	s.AllWas, _ = readSysctl(sysctlPath(s.Family, allLinks, s.Key))
	if i := h.rec.find(s); i >= 0 {
		old := h.rec.Settings[i]
		s.Was, s.AllWas, s.Kept = old.Was, old.AllWas, old.Kept
		h.rec.Settings[i] = s
	} else {
		if s.Index == 0 {
			s.Kept = s.had(v)
		}
		h.rec.Settings = append(h.rec.Settings, s)
	}
	return h.rec.save()
}

// had lists the links that have the setting's value before all links get it.
func (s setting) had(v *view) (links []int) {
	for _, l := range v.sorted() {
		if now, _ := readSysctl(sysctlPath(s.Family, l.name, s.Key)); now == s.Set {
			links = append(links, l.index)
		}
	}
	return links
}

// unwanted are the changes that take back settings which the plan no longer
// asks for.
func (h *Host) unwanted(v *view, wanted []setting) []change {
	var list []change
	for _, s := range h.rec.Settings {
		if slices.ContainsFunc(wanted, s.same) {
			continue
		}
		name, ok := s.name(v)
		if !ok {
			continue // nothing to do; the record forgets it on exit
		}
		text := s.text(name, s.Was)
		list = append(list, change{key: s.id(), text: "set back " + text, do: func() error {
			h.claims.ignore(s)
			_, err := h.rec.takeBack(s, v)
			return err
		}})
	}
	return list
}

// takeBack gives a setting its old value if it is still as natless set it and
// nobody has meanwhile set all links alike, and strikes it off the record. What
// was lowered for all links is raised again for those that had it before.
func (r *record) takeBack(s setting, v *view) (line string, err error) {
	beforeChange("set back " + s.Key)
	name, ok := s.name(v)
	path := sysctlPath(s.Family, name, s.Key)
	now, _ := readSysctl(path)
	all, _ := readSysctl(sysctlPath(s.Family, allLinks, s.Key))
	if ok && now == s.Set && (s.Index == 0 || all == s.AllWas) {
		if err := writeSysctl(path, s.Was); err != nil {
			return "", fmt.Errorf("setting back %s: %w", s.text(name, s.Was), err)
		}
		for _, i := range s.Kept {
			if l, there := v.links[i]; there {
				_ = writeSysctl(sysctlPath(s.Family, l.name, s.Key), s.Set) // or it went
			}
		}
		line = "set back " + s.text(name, s.Was)
	}
	r.Settings = slices.DeleteFunc(r.Settings, s.same)
	return line, r.save()
}

// undoSettings takes back all settings of the record, the newest first.
func undoSettings(rec *record, v *view) (done []string, err error) {
	var errs []error
	for _, s := range slices.Backward(slices.Clone(rec.Settings)) {
		line, err := rec.takeBack(s, v)
		if err != nil {
			errs = append(errs, err)
		}
		if line != "" {
			done = append(done, line)
		}
	}
	return done, errors.Join(errs...)
}
