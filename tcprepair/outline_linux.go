// SPDX-License-Identifier: Apache-2.0

package tcprepair

// ReadOutline reads the outline of a connection, frozen or not.
func ReadOutline(fd int) (*Outline, error) {
	o := &Outline{}
	if err := o.read(socket(fd)); err != nil {
		return nil, opError("read options", socket(fd), err)
	}
	return o, nil
}

func (o *Outline) read(s socket) error {
	flow, v6, err := flowOf(s)
	if err != nil {
		return err
	}
	o.Flow = flow
	o.Mapped = v6 && flow.Local.Addr().Is4()
	o.plain = plain(s) == nil
	return o.Options.read(s, v6, flow.Local.Addr().Is6())
}
