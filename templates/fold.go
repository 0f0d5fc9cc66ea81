package templates

import (
	"fmt"
	"html/template"
	"text/template/parse"
)

// folder puts texts and icons that never change into the parsed templates,
// once for a locale: {{T "plan.title"}} becomes the text. It halves the time
// to draw a page, and finds a key that is not in the catalogue at load. What
// is put in is ours and escaped for HTML texts and quoted attributes.
type folder struct {
	local *local
	icon  func(string) (template.HTML, error)
	asset func(string) string
}

func (f folder) list(t *parse.Tree, list *parse.ListNode) error {
	if list == nil {
		return nil
	}
	for i, n := range list.Nodes {
		var err error
		switch n := n.(type) {
		case *parse.ActionNode:
			list.Nodes[i], err = f.action(t, n)
		case *parse.IfNode:
			err = f.branch(t, &n.BranchNode)
		case *parse.RangeNode:
			err = f.branch(t, &n.BranchNode)
		case *parse.WithNode:
			err = f.branch(t, &n.BranchNode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f folder) branch(t *parse.Tree, b *parse.BranchNode) error {
	if err := f.list(t, b.List); err != nil {
		return err
	}
	return f.list(t, b.ElseList)
}

// action returns what stands for n: n itself, or its text where it is one of
// the functions that always return the same for a literal.
func (f folder) action(t *parse.Tree, n *parse.ActionNode) (parse.Node, error) {
	if len(n.Pipe.Decl) > 0 || len(n.Pipe.Cmds) != 1 || len(n.Pipe.Cmds[0].Args) != 2 {
		return n, nil
	}
	fn, ok := n.Pipe.Cmds[0].Args[0].(*parse.IdentifierNode)
	literal, isString := n.Pipe.Cmds[0].Args[1].(*parse.StringNode)
	if !ok || !isString {
		return n, nil
	}
	var s string
	var err error
	switch fn.Ident {
	case "T":
		s, err = f.local.say(literal.Text, true)
	case "S":
		s, err = f.local.say(literal.Text, false)
		s = template.HTMLEscapeString(s)
	case "path":
		s, err = pathOf(literal.Text)
	case "asset":
		s = f.asset(literal.Text)
	case "icon":
		var svg template.HTML
		svg, err = f.icon(literal.Text)
		s = string(svg)
	default:
		return n, nil
	}
	if err != nil {
		at, _ := t.ErrorContext(n)
		return nil, fmt.Errorf("template: %s: %w", at, err)
	}
	return &parse.TextNode{NodeType: parse.NodeText, Pos: n.Pos, Text: []byte(s)}, nil
}
