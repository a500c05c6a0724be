// SPDX-License-Identifier: Apache-2.0

// Package criu moves whole processes.
package criu
