// SPDX-License-Identifier: Apache-2.0

package synproxy

// Stats returns the counters.
func (p *Proxy) Stats() (Stats, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return Stats{}, wrap("stats", ErrClosed)
	}
	var each []synproxyCounters
	if err := p.objects.Counts.Lookup(uint32(0), &each); err != nil {
		return Stats{}, wrap("stats", err)
	}
	s := p.stats
	for _, c := range each {
		s.Answered += c.Answered
		s.Ignored += c.Unanswered
		s.Tiny += c.Tiny
		s.Completed += c.Completed
		s.Shown += c.Shown
		s.Repeated += c.Repeated
		s.Invalid += c.Invalid
		s.Late += c.Late
		s.Overflow += c.Overflow
		s.Large += c.Large
	}
	for _, c := range p.conns {
		if c.phase == waiting || c.phase == asked {
			s.Undecided++
		} else {
			s.Kept++
		}
	}
	return s, nil
}
