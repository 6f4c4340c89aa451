package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var updateReference = flag.Bool("update", false, "write docs/reference.md anew")

// elsewhere are the commands whose flags docs/node-plugin.md explains, which
// TestDocumentedFlags checks.
var elsewhere = []string{"node", "controller", "holder"}

// manyCommands is how many commands have a flag that is told of once for all.
const manyCommands = 3

// flagRow is a row of a table of flags, and which commands have it.
type flagRow struct {
	text     string
	name     string
	commands []string
}

// TestReference: the tables of commands and flags in docs/reference.md are those of
// the program. make generate writes them.
func TestReference(t *testing.T) {
	const file = "../../docs/reference.md"
	const begin, end = "<!-- commands: made by make generate -->\n", "<!-- end of commands -->\n"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(page), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no part between %q and %q", file, begin, end)
	}
	want := head + begin + "\n" + commandReference(t) + end + tail
	if *updateReference {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want == string(page) {
		return
	}
	have, wish := strings.Split(string(page), "\n"), strings.Split(want, "\n")
	for i := range max(len(have), len(wish)) {
		if i >= len(have) || i >= len(wish) || have[i] != wish[i] {
			t.Fatalf("%s is stale from line %d on: run make generate and commit it", file, i+1)
		}
	}
}

// commandReference is a section a command, after one with the flags of many.
func commandReference(t *testing.T) string {
	t.Helper()
	var commands []*cobra.Command
	for _, root := range []*cobra.Command{newRoot().command, newKubectlRoot().command} {
		commands = append(commands, leaves(root)...)
	}
	byText := make(map[string]*flagRow)
	of := make(map[*cobra.Command][]*flagRow)
	add := func(cmd *cobra.Command, f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "v" || f.Name == "version" {
			return
		}
		text := rowText(f)
		if byText[text] == nil {
			byText[text] = &flagRow{text: text, name: f.Name}
		}
		row := byText[text]
		row.commands = append(row.commands, strings.TrimPrefix(cmd.CommandPath(), "erofs-csi "))
		of[cmd] = append(of[cmd], row)
	}
	for _, cmd := range commands {
		if cmd.Example == "" || cmd.Short == "" {
			t.Errorf("%s has no example, or says nothing", cmd.CommandPath())
		}
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { add(cmd, f) })
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { add(cmd, f) })
	}
	var b bytes.Buffer
	b.WriteString("### Flags of several commands\n\n| flag | default | | commands |\n|---|---|---|---|\n")
	var common []*flagRow
	for _, row := range byText {
		if len(row.commands) >= manyCommands {
			common = append(common, row)
		}
	}
	slices.SortFunc(common, func(a, b *flagRow) int { return strings.Compare(a.name+a.text, b.name+b.text) })
	for _, row := range common {
		fmt.Fprintf(&b, "%s %s |\n", row.text, strings.Join(row.commands, ", "))
	}
	b.WriteString("\n")
	for _, cmd := range commands {
		// Without [flags], which cobra appends.
		line := strings.TrimSuffix(cmd.UseLine(), " [flags]")
		fmt.Fprintf(&b, "### `%s`\n\n%s: `%s`\n\n", cmd.CommandPath(), cmd.Short, line)
		title := "| flag | default | |\n|---|---|---|\n"
		for _, row := range of[cmd] {
			if len(row.commands) < manyCommands {
				b.WriteString(title + row.text + "\n")
				title = ""
			}
		}
		if title == "" {
			b.WriteString("\n")
		}
	}
	return b.String()
}

// leaves are the commands below cmd that do something, in order, but for cobra's own
// and those that are explained elsewhere.
func leaves(cmd *cobra.Command) []*cobra.Command {
	var list []*cobra.Command
	for _, c := range cmd.Commands() {
		switch {
		case c.Name() == "completion" || c.Name() == "help" || c.Hidden || slices.Contains(elsewhere, c.Name()):
		case c.HasSubCommands():
			list = append(list, leaves(c)...)
		default:
			list = append(list, c)
		}
	}
	return list
}

// rowText is the row of a flag: name, default and usage.
func rowText(f *pflag.Flag) string {
	value, usage := pflag.UnquoteUsage(f)
	name := "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	if value != "" {
		name += " " + value
	}
	text := ""
	if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "false" {
		text = "`" + f.DefValue + "`"
	}
	return fmt.Sprintf("| `%s` | %s | %s |", strings.ReplaceAll(name, "|", `\|`), text, strings.ReplaceAll(usage, "|", `\|`))
}
