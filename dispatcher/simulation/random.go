// SPDX-License-Identifier: Apache-2.0

package simulation

import "math"

// stream is a sequence of random numbers: splitmix64 (Steele, Lea, Flood, OOPSLA 2014). Each session has one of its own, eight bytes
// of state, so that what it does depends on no other session and no policy.
type stream uint64

// streamOf returns the stream of a number, for a seed.
func streamOf(seed, number uint64) stream {
	s := stream(seed)
	return stream(s.next() ^ number*0x9e3779b97f4a7c15)
}

func (s *stream) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	x := uint64(*s)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// uniform returns a number above 0 and below 1.
func (s *stream) uniform() float64 { return (float64(s.next()>>11) + 0.5) / (1 << 53) }

func (s *stream) exponential(mean float64) float64 { return -mean * math.Log(s.uniform()) }

// geometric returns a whole number of at least 1.
func (s *stream) geometric(mean float64) int {
	if mean <= 1 {
		return 1
	}
	return 1 + int(math.Log(s.uniform())/math.Log(1-1/mean))
}
