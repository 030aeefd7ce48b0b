// Package attach makes a network namespace, somebody's container, use a running
// natless, and undoes it: it stands where the way of a packet begins. Inside the
// namespace it sees to a source address, a route to pref64, the range of ports
// and, where asked, the resolver; with a link of its own where there is none.
//
// The short-lived commands do all of it, for entering another's namespace takes
// more rights than the daemon has. The daemon lends the address and keeps the
// record: what is to be undone is written there before anything is changed, so
// that a second command can undo what a killed one did.
//
// target.go finds the namespace that a user means, engine.go asks Podman and
// Docker, namespace.go looks into it, link.go and portrange.go and resolver.go
// plan what to change there, and undo.go carries the plan out and takes it back.
package attach
