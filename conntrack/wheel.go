package conntrack

// wheelSize is how many ticks the wheel has. All but a wish for more than two
// hours and a quarter are filed where they belong at once; those come by and
// are filed again.
const wheelSize = 8192

// file puts a flow where the wheel comes by when its time has come, or before.
func (s *shard) file(i uint32) {
	fl := &s.t.slots.flows[i]
	ahead := int32(fl.deadline + 1 - s.done)
	fl.filed = s.done + uint32(min(max(ahead, 1), wheelSize))
	head := &s.wheel[fl.filed%wheelSize]
	fl.up, fl.down = 0, *head
	if *head != 0 {
		s.t.slots.flows[*head].up = i
	}
	*head = i
}

func (s *shard) unfile(i uint32) {
	fl := &s.t.slots.flows[i]
	if fl.down != 0 {
		s.t.slots.flows[fl.down].up = fl.up
	}
	if fl.up != 0 {
		s.t.slots.flows[fl.up].down = fl.down
	} else {
		s.wheel[fl.filed%wheelSize] = fl.down
	}
}

// advance turns the wheel to now, but looks at no more flows than the budget
// allows. It returns how many it looked at and whether it came to now. Flows
// whose time has come are removed; those that were refreshed are filed anew.
func (s *shard) advance(now uint32, budget int) (worked int, done bool) {
	behind := int32(now - s.done)
	if behind > wheelSize { // one turn passes everything
		s.done = now - wheelSize
	}
	for int32(now-s.done) > 0 {
		head := &s.wheel[(s.done+1)%wheelSize]
		for *head != 0 {
			if worked == budget {
				return worked, false
			}
			worked++
			i := *head
			if s.t.slots.flows[i].expired(now) {
				s.remove(i)
				continue
			}
			s.unfile(i)
			s.file(i)
		}
		s.done++
	}
	return worked, true
}
