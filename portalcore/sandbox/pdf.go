package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"codeberg.org/go-pdf/fpdf"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// seller is the name on the sandbox's invoices.
const seller = "Acme (sandbox: no real money)"

// InvoicePDF is the invoice's document: A4, in English, with embedded fonts
// for Latin, Greek and Cyrillic. The same invoice gives the same bytes.
func (l *Ledger) InvoicePDF(ctx context.Context, id string) ([]byte, error) {
	inv, err := l.Invoice(ctx, id)
	if err != nil {
		return nil, err
	}
	return renderPDF(inv)
}

// CreditNotePDF is the credit note's document, in the form of InvoicePDF.
func (l *Ledger) CreditNotePDF(ctx context.Context, id string) ([]byte, error) {
	n, err := l.CreditNote(ctx, id)
	if err != nil {
		return nil, err
	}
	inv, err := l.Invoice(ctx, n.Invoice)
	if err != nil {
		return nil, err
	}
	return renderCreditNote(inv, n)
}

// Sides of the paper, in millimetres.
const (
	left, width           = 18.0, 174.0
	description, quantity = 100.0, 18.0
	amount                = width - description - quantity
)

func date(t time.Time) string { return t.Format("2 January 2006") }

// printable is s fit for paper: in one line, without what cannot be seen or
// turns the direction of what follows, and cut where it is longer than any name
// has to be. Characters beyond the first plane are not in the fonts.
func printable(s string) string {
	const longest = 300
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp):
			return -1
		case r > 0xffff:
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
	if r := []rune(s); len(r) > longest {
		s = string(r[:longest-1]) + "…"
	}
	return s
}

// paper begins a document: title, what it says about itself, and who gets it.
func paper(title, number string, made time.Time, head [][2]string, inv Invoice) (*fpdf.Fpdf, func(style string, size, h float64, s string)) {
	pdf := fpdf.New("P", "mm", "A4", "")
	pdf.SetCreationDate(made)
	pdf.SetModificationDate(made)
	pdf.SetCatalogSort(true)
	pdf.SetTitle(title+" "+number, true)
	pdf.SetLang("en")
	pdf.AddUTF8FontFromBytes("go", "", goregular.TTF)
	pdf.AddUTF8FontFromBytes("go", "B", gobold.TTF)
	pdf.SetMargins(left, 18, left)
	pdf.SetAutoPageBreak(true, 20)
	pdf.AddPage()
	text := func(style string, size, h float64, s string) {
		pdf.SetFont("go", style, size)
		pdf.MultiCell(width, h, s, "", "L", false)
	}
	text("B", 20, 10, title)
	text("", 9, 5, seller)
	pdf.Ln(4)
	for _, h := range head {
		pdf.SetFont("go", "", 9)
		pdf.CellFormat(40, 5, printable(h[0]), "", 0, "L", false, 0, "")
		pdf.SetFont("go", "B", 9)
		pdf.MultiCell(width-40, 5, printable(h[1]), "", "L", false)
	}
	pdf.Ln(4)
	text("B", 9, 5, "Bill to")
	a := inv.CustomerAddress
	bill := slices.Grow([]string{inv.CustomerName, a.Line1, a.Line2, strings.TrimSpace(a.PostalCode + " " + a.City), a.State, a.Country, inv.CustomerEmail}, len(inv.CustomerTaxIDs))
	for _, t := range inv.CustomerTaxIDs {
		bill = append(bill, "Tax ID "+t.Value)
	}
	for _, s := range bill {
		if s = printable(s); s != "" {
			text("", 9, 5, s)
		}
	}
	pdf.Ln(6)
	return pdf, text
}

// total writes the sums below the lines, the bold ones bold.
func total(pdf *fpdf.Fpdf, sums [][2]string, bold ...string) {
	for _, s := range sums {
		style := ""
		if slices.Contains(bold, s[0]) {
			style = "B"
		}
		pdf.SetFont("go", style, 9)
		pdf.CellFormat(description+quantity, 6, s[0], "", 0, "R", false, 0, "")
		pdf.CellFormat(amount, 6, s[1], "", 1, "R", false, 0, "")
	}
}

func written(pdf *fpdf.Fpdf, what string) ([]byte, error) {
	var buf bytes.Buffer
	if err := pdf.Output(&buf); err != nil {
		return nil, fmt.Errorf("writing the PDF of %s: %w", what, err)
	}
	return buf.Bytes(), nil
}

func renderCreditNote(inv Invoice, n CreditNote) ([]byte, error) {
	head := [][2]string{{"Credit note number", n.Number}, {"Date of issue", date(n.Created)}, {"Invoice number", inv.Number}}
	if n.Reason != "" {
		head = append(head, [2]string{"Reason", strings.ReplaceAll(n.Reason, "_", " ")})
	}
	pdf, text := paper("Credit note", n.Number, n.Created, head, inv)
	if n.Memo != "" {
		text("", 9, 5, printable(n.Memo))
		pdf.Ln(4)
	}
	sums := [][2]string{{"Subtotal", formatMinor(n.Subtotal, n.Currency)}}
	if n.Tax != 0 {
		sums = append(sums, [2]string{"Tax " + inv.TaxPercent.String() + "%", formatMinor(n.Tax, n.Currency)})
	}
	sums = append(sums, [2]string{"Total", formatMinor(n.Total, n.Currency)})
	switch {
	case n.Refunded != 0:
		sums = append(sums, [2]string{"Refunded", formatMinor(n.Refunded, n.Currency)})
	case n.ToBalance != 0:
		sums = append(sums, [2]string{"Added to your balance", formatMinor(n.ToBalance, n.Currency)})
	default:
		sums = append(sums, [2]string{"Taken off the invoice", formatMinor(n.Reduced, n.Currency)})
	}
	total(pdf, sums, "Total")
	if n.Void() {
		pdf.Ln(4)
		text("B", 12, 7, "VOID")
	}
	return written(pdf, "credit note "+n.Number)
}

func renderPDF(inv Invoice) ([]byte, error) {
	head := [][2]string{{"Invoice number", inv.Number}, {"Date of issue", date(inv.Created)}}
	if !inv.DueDate.IsZero() {
		head = append(head, [2]string{"Date due", date(inv.DueDate)})
	}
	if !inv.PaidAt.IsZero() {
		head = append(head, [2]string{"Paid on", date(inv.PaidAt)})
	}
	head = append(head, [2]string{"Status", string(inv.Status)})
	for _, f := range inv.CustomFields {
		head = append(head, [2]string{f.Name, f.Value})
	}
	pdf, text := paper("Invoice", inv.Number, inv.Created, head, inv)
	pdf.SetFont("go", "B", 9)
	pdf.CellFormat(description, 7, "Description", "B", 0, "L", false, 0, "")
	pdf.CellFormat(quantity, 7, "Qty", "B", 0, "R", false, 0, "")
	pdf.CellFormat(amount, 7, "Amount", "B", 1, "R", false, 0, "")
	for _, l := range inv.Lines {
		if pdf.GetY() > 255 {
			pdf.AddPage()
		}
		pdf.SetFont("go", "", 9)
		y := pdf.GetY()
		pdf.MultiCell(description, 5, printable(l.Description), "", "L", false)
		pdf.SetFont("go", "", 8)
		pdf.SetTextColor(90, 90, 90)
		pdf.MultiCell(description, 4, date(l.PeriodStart)+" – "+date(l.PeriodEnd), "", "L", false)
		pdf.SetTextColor(0, 0, 0)
		end := pdf.GetY() + 1
		pdf.SetXY(left+description, y)
		pdf.SetFont("go", "", 9)
		pdf.CellFormat(quantity, 5, l.quantity(), "", 0, "R", false, 0, "")
		pdf.CellFormat(amount, 5, formatMinor(l.Amount, inv.Currency), "", 1, "R", false, 0, "")
		pdf.SetY(end)
	}
	pdf.CellFormat(width, 2, "", "T", 1, "L", false, 0, "")
	sums := [][2]string{{"Subtotal", formatMinor(inv.Subtotal, inv.Currency)}}
	if inv.Credits != 0 {
		sums = append(sums, [2]string{"Credits", formatMinor(-inv.Credits, inv.Currency)})
	}
	if !inv.TaxPercent.IsZero() {
		sums = append(sums, [2]string{"Tax " + inv.TaxPercent.String() + "%", formatMinor(inv.Tax, inv.Currency)})
	}
	sums = append(sums, [2]string{"Total", formatMinor(inv.Total, inv.Currency)})
	if moved := inv.EndingBalance - inv.StartingBalance; moved != 0 {
		sums = append(sums, [2]string{"Account balance", formatMinor(-moved, inv.Currency)})
	}
	sums = append(sums, [2]string{"Amount due", formatMinor(inv.AmountDue, inv.Currency)}, [2]string{"Amount paid", formatMinor(inv.AmountPaid, inv.Currency)})
	total(pdf, sums, "Total", "Amount due")
	if inv.Status == billing.InvoiceVoid {
		pdf.Ln(4)
		text("B", 12, 7, "VOID")
	}
	return written(pdf, "invoice "+inv.Number)
}
