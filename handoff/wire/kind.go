// SPDX-License-Identifier: Apache-2.0

package wire

import "fmt"

// Kind is the number of a message on the wire. Append-only.
type Kind uint8

// Kinds of frames: 1-15 everywhere, 16-31 and 43 between source and target, 32-47 else with the entry, 48-63 between gateway and
// dispatcher, 64 and above between agent and application.
const (
	KindHello        Kind = 1
	KindPing         Kind = 2
	KindPong         Kind = 3
	KindRefuse       Kind = 4
	KindChunk        Kind = 5
	KindOffer        Kind = 16
	KindAccept       Kind = 17
	KindStateSent    Kind = 18
	KindStateStored  Kind = 19
	KindTransfer     Kind = 20
	KindCommitted    Kind = 21
	KindHeld         Kind = 22
	KindCancel       Kind = 23
	KindHandoff      Kind = 24
	KindLocate       Kind = 25
	KindLocated      Kind = 26
	KindProcess      Kind = 27
	KindImage        Kind = 28
	KindImageEnd     Kind = 29
	KindFlowSet      Kind = 30
	KindFetch        Kind = 31
	KindMemory       Kind = 43
	KindLease        Kind = 32
	KindLeased       Kind = 33
	KindCommit       Kind = 34
	KindAbort        Kind = 35
	KindQuery        Kind = 36
	KindOwner        Kind = 37
	KindEnded        Kind = 38
	KindPresence     Kind = 39
	KindLeaseRefused Kind = 40
	KindCookies      Kind = 44
	KindCookiesTaken Kind = 45
	KindUnmade       Kind = 46
	KindUnmodified   Kind = 47
	KindGatewayHello Kind = 48
	KindHalves       Kind = 49
	KindInstalled    Kind = 50
	KindRelocate     Kind = 51
	KindLeaseGroup   Kind = 41
	KindShut         Kind = 42
	KindRegister     Kind = 64
	KindRegistered   Kind = 65
	KindList         Kind = 66
	KindFlows        Kind = 67
	KindExport       Kind = 68
	KindExported     Kind = 69
	KindResume       Kind = 70
	KindMigrated     Kind = 71
	KindImport       Kind = 72
	KindImported     Kind = 73
	KindActivate     Kind = 74
	KindWithdraw     Kind = 75
	KindRecover      Kind = 76
	KindPrepare      Kind = 77
	KindPrepared     Kind = 78
	KindLoad         Kind = 79
)

// Carries reports whether a frame of this kind is accompanied by one file descriptor.
func (k Kind) Carries() bool {
	return k == KindExported || k == KindImport || k == KindRecover
}

// String returns the message's name.
func (k Kind) String() string {
	if m := newMessage(k); m != nil {
		return fmt.Sprintf("%T", m)[len("*wire."):]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// newMessage returns an empty message of kind k, nil when k is unknown.
func newMessage(k Kind) Message {
	switch k {
	case KindHello:
		return &Hello{}
	case KindPing:
		return &Ping{}
	case KindPong:
		return &Pong{}
	case KindRefuse:
		return &Refuse{}
	case KindChunk:
		return &Chunk{}
	case KindOffer:
		return &Offer{}
	case KindAccept:
		return &Accept{}
	case KindStateSent:
		return &StateSent{}
	case KindStateStored:
		return &StateStored{}
	case KindTransfer:
		return &Transfer{}
	case KindCommitted:
		return &Committed{}
	case KindHeld:
		return &Held{}
	case KindCancel:
		return &Cancel{}
	case KindHandoff:
		return &Handoff{}
	case KindLocate:
		return &Locate{}
	case KindLocated:
		return &Located{}
	case KindProcess:
		return &Process{}
	case KindImage:
		return &Image{}
	case KindImageEnd:
		return &ImageEnd{}
	case KindFlowSet:
		return &FlowSet{}
	case KindFetch:
		return &Fetch{}
	case KindMemory:
		return &Memory{}
	case KindLeaseGroup:
		return &LeaseGroup{}
	case KindShut:
		return &Shut{}
	case KindLease:
		return &Lease{}
	case KindLeased:
		return &Leased{}
	case KindCommit:
		return &Commit{}
	case KindAbort:
		return &Abort{}
	case KindQuery:
		return &Query{}
	case KindOwner:
		return &Owner{}
	case KindEnded:
		return &Ended{}
	case KindLeaseRefused:
		return &LeaseRefused{}
	case KindPresence:
		return &Presence{}
	case KindCookies:
		return &Cookies{}
	case KindCookiesTaken:
		return &CookiesTaken{}
	case KindUnmade:
		return &Unmade{}
	case KindUnmodified:
		return &Unmodified{}
	case KindGatewayHello:
		return &GatewayHello{}
	case KindHalves:
		return &Halves{}
	case KindInstalled:
		return &Installed{}
	case KindRelocate:
		return &Relocate{}
	case KindRegister:
		return &Register{}
	case KindRegistered:
		return &Registered{}
	case KindList:
		return &List{}
	case KindFlows:
		return &Flows{}
	case KindExport:
		return &Export{}
	case KindExported:
		return &Exported{}
	case KindResume:
		return &Resume{}
	case KindMigrated:
		return &Migrated{}
	case KindImport:
		return &Import{}
	case KindImported:
		return &Imported{}
	case KindActivate:
		return &Activate{}
	case KindWithdraw:
		return &Withdraw{}
	case KindRecover:
		return &Recover{}
	case KindPrepare:
		return &Prepare{}
	case KindPrepared:
		return &Prepared{}
	case KindLoad:
		return &Load{}
	}
	return nil
}

// Kind implements Message, here and below.
func (*Hello) Kind() Kind        { return KindHello }
func (*Ping) Kind() Kind         { return KindPing }
func (*Pong) Kind() Kind         { return KindPong }
func (*Refuse) Kind() Kind       { return KindRefuse }
func (*Chunk) Kind() Kind        { return KindChunk }
func (*Offer) Kind() Kind        { return KindOffer }
func (*Accept) Kind() Kind       { return KindAccept }
func (*StateSent) Kind() Kind    { return KindStateSent }
func (*StateStored) Kind() Kind  { return KindStateStored }
func (*Transfer) Kind() Kind     { return KindTransfer }
func (*Committed) Kind() Kind    { return KindCommitted }
func (*Held) Kind() Kind         { return KindHeld }
func (*Cancel) Kind() Kind       { return KindCancel }
func (*Handoff) Kind() Kind      { return KindHandoff }
func (*Locate) Kind() Kind       { return KindLocate }
func (*Located) Kind() Kind      { return KindLocated }
func (*Process) Kind() Kind      { return KindProcess }
func (*Image) Kind() Kind        { return KindImage }
func (*ImageEnd) Kind() Kind     { return KindImageEnd }
func (*FlowSet) Kind() Kind      { return KindFlowSet }
func (*Fetch) Kind() Kind        { return KindFetch }
func (*Memory) Kind() Kind       { return KindMemory }
func (*LeaseGroup) Kind() Kind   { return KindLeaseGroup }
func (*Shut) Kind() Kind         { return KindShut }
func (*Lease) Kind() Kind        { return KindLease }
func (*Leased) Kind() Kind       { return KindLeased }
func (*Commit) Kind() Kind       { return KindCommit }
func (*Abort) Kind() Kind        { return KindAbort }
func (*Query) Kind() Kind        { return KindQuery }
func (*Owner) Kind() Kind        { return KindOwner }
func (*Ended) Kind() Kind        { return KindEnded }
func (*LeaseRefused) Kind() Kind { return KindLeaseRefused }
func (*Presence) Kind() Kind     { return KindPresence }
func (*Relocate) Kind() Kind     { return KindRelocate }
func (*Cookies) Kind() Kind      { return KindCookies }
func (*CookiesTaken) Kind() Kind { return KindCookiesTaken }
func (*Unmade) Kind() Kind       { return KindUnmade }
func (*Unmodified) Kind() Kind   { return KindUnmodified }
func (*GatewayHello) Kind() Kind { return KindGatewayHello }
func (*Halves) Kind() Kind       { return KindHalves }
func (*Installed) Kind() Kind    { return KindInstalled }
func (*Register) Kind() Kind     { return KindRegister }
func (*Registered) Kind() Kind   { return KindRegistered }
func (*List) Kind() Kind         { return KindList }
func (*Flows) Kind() Kind        { return KindFlows }
func (*Export) Kind() Kind       { return KindExport }
func (*Exported) Kind() Kind     { return KindExported }
func (*Resume) Kind() Kind       { return KindResume }
func (*Migrated) Kind() Kind     { return KindMigrated }
func (*Import) Kind() Kind       { return KindImport }
func (*Imported) Kind() Kind     { return KindImported }
func (*Activate) Kind() Kind     { return KindActivate }
func (*Withdraw) Kind() Kind     { return KindWithdraw }
func (*Recover) Kind() Kind      { return KindRecover }
func (*Prepare) Kind() Kind      { return KindPrepare }
func (*Prepared) Kind() Kind     { return KindPrepared }
func (*Load) Kind() Kind         { return KindLoad }

// Code says why something was refused, for programs. Append-only.
type Code uint8

// Codes of Refuse.
const (
	CodeUnspecified Code = iota
	// CodeNoService: nobody on the host serves this service, or not by importing.
	CodeNoService
	// CodeNoAddress: the service's address is not on the host, or not ready.
	CodeNoAddress
	// CodeInUse: the host already has a connection, or a reservation, of this flow.
	CodeInUse
	// CodeBusy: no room for another migration.
	CodeBusy
	// CodeNoFlow: the receiver has no such connection.
	CodeNoFlow
	// CodeNotNow: the application is not at a point where it can export; asking again may succeed.
	CodeNotNow
	// CodeNotMovable: the connection cannot be moved as it is.
	CodeNotMovable
	// CodeEpoch: the flow is not of the epoch, or not the property, of who asks.
	CodeEpoch
	// CodeDraining: the host takes no connections at present.
	CodeDraining
	// CodeFailed: the receiver tried and the kernel or the application said no.
	CodeFailed
	// CodeTimeout: the time for it is over.
	CodeTimeout
	// CodeVersion: no version of the protocol in common.
	CodeVersion
	// CodeOver: the connection has ended, or may have: nobody may go on with it.
	CodeOver
)

// String returns the code in words.
func (c Code) String() string {
	names := [...]string{
		"unspecified", "no such service", "address not ready", "in use", "busy", "no such flow", "not now",
		"not movable", "wrong epoch or owner", "draining", "failed", "timed out", "no common version", "over",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// Delivery is how a connection that a dispatcher has accepted reaches the server. Append-only.
type Delivery uint8

// Deliveries.
const (
	// DeliverLinked: by Import, to an application that has registered the service.
	DeliverLinked Delivery = 1
	// DeliverDescriptor: as a descriptor over the UNIX socket that the Handoff names.
	DeliverDescriptor Delivery = 2
	// DeliverUnmodified: through the accept queue of whoever listens at the service's address.
	DeliverUnmodified Delivery = 3
)

// String returns the delivery as configurations name it.
func (d Delivery) String() string {
	switch d {
	case DeliverLinked:
		return "linked"
	case DeliverDescriptor:
		return "fd"
	case DeliverUnmodified:
		return "unmodified"
	}
	return fmt.Sprintf("delivery %d", uint8(d))
}

// Blob names a value that travels in chunks. Append-only.
type Blob uint8

// Blobs.
const (
	BlobState    Blob = 1
	BlobSnapshot Blob = 2
	BlobAhead    Blob = 3
	BlobReceived Blob = 4
)
