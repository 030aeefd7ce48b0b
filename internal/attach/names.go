package attach

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/natless/natless/internal/printable"
)

// Name is one that a target may be given by, and what has it.
type Name struct{ Name, Of string }

// Names lists what can be attached by name: the namespaces in /run/netns and the
// running containers of the engines that answer within the context. It is for who
// types: what cannot be listed is left out, and so is what would not print.
func Names(ctx context.Context) (list []Name) {
	add := func(of string, names ...string) {
		for _, name := range names {
			if name != "" && printable.Text(name) == name && !strings.ContainsAny(name, " \t") {
				list = append(list, Name{name, of})
			}
		}
	}
	entries, _ := os.ReadDir(netnsDir)
	for _, e := range entries {
		add("namespace", e.Name())
	}
	for _, kind := range []Kind{KindPodman, KindDocker} {
		add(engines[kind].title+" container", engines[kind].running(ctx)...)
	}
	return list
}

// running are the names of the containers that run.
func (e engine) running(ctx context.Context) (names []string) {
	for _, socket := range e.sockets() {
		names = append(names, listAt(ctx, socket)...)
	}
	if len(names) > 0 {
		return names
	}
	path, err := exec.LookPath(string(e.kind))
	if err != nil {
		return nil
	}
	out, err := exec.CommandContext(ctx, path, "ps", "--format", "{{.Names}}").Output()
	if err != nil {
		return nil
	}
	return strings.Fields(string(out))
}

func listAt(ctx context.Context, socket string) (names []string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/containers/json", nil)
	if err != nil {
		return nil
	}
	resp, err := at(socket).Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var list []struct{ Names []string }
	if json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&list) != nil {
		return nil
	}
	for _, c := range list {
		if len(c.Names) > 0 {
			names = append(names, strings.TrimPrefix(c.Names[0], "/"))
		}
	}
	return names
}
