package mapping

import "github.com/natless/natless/translate"

// Most tests are of clients that share no address. What follows is for them:
// flows by value, and no ranges; what takes a session finds none.

func (x Ranges) alone(f *translate.Flow, v translate.Verdict) translate.Verdict {
	session := x.Src != nil && !x.Src.Stateless(f.Proto, f.SrcPort) || x.Dst != nil && !x.Dst.Stateless(f.Proto, f.DstPort)
	if session && v.Leaves() {
		return translate.NoSession
	}
	return v
}

func (t *Table) Resolve(f translate.Flow, tick uint32) (translate.Flow, translate.Verdict) {
	x, v := t.ResolveRanges(&f, tick)
	return f, x.alone(&f, v)
}

func (t *Table) Lookup(f translate.Flow) (translate.Flow, translate.Verdict) {
	f, x, v := t.LookupRanges(f)
	return f, x.alone(&f, v)
}

func (t *Table) Foresee(f translate.Flow) (translate.Flow, translate.Verdict) {
	f, x, v := t.ForeseeRanges(f)
	return f, x.alone(&f, v)
}

func (t *Table) HairpinBack(f translate.Flow) (translate.Flow, translate.Verdict) {
	f, x, v := t.HairpinBackRanges(f)
	return f, x.alone(&f, v)
}
