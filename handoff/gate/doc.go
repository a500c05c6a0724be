// SPDX-License-Identifier: Apache-2.0

// Package gate stub.
package gate
