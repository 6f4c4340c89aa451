package main

import (
	"errors"
	"fmt"
	"strings"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is an error of the command line itself, found by a command rather
// than by the flag parser.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// exitCode is exitUsage for what cobra refused before any command began, and
// for what a command refused as wrong usage.
func (r *root) exitCode(err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return exitDone
	case !r.began, errors.As(err, &usage):
		return exitUsage
	default:
		return exitFailed
	}
}

// oneLine is a text, such as that of an error, without line breaks; errors.Join
// puts one between its parts, and an image may put anything into a name.
func oneLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	for i, l := range lines {
		lines[i] = strings.TrimSpace(l)
	}
	return strings.Join(lines, "; ")
}

func failf(format string, args ...any) error { return fmt.Errorf(format, args...) }
