package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

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

func renderPDF(inv Invoice) ([]byte, error) {
	const (
		left, width           = 18.0, 174.0
		description, quantity = 100.0, 18.0
		amount                = width - description - quantity
	)
	date := func(t time.Time) string { return t.Format("2 January 2006") }
	pdf := fpdf.New("P", "mm", "A4", "")
	pdf.SetCreationDate(inv.Created)
	pdf.SetModificationDate(inv.Created)
	pdf.SetCatalogSort(true)
	pdf.SetTitle("Invoice "+inv.Number, true)
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
	text("B", 20, 10, "Invoice")
	text("", 9, 5, seller)
	pdf.Ln(4)
	head := [][2]string{{"Invoice number", inv.Number}, {"Date of issue", date(inv.Created)}}
	if !inv.DueDate.IsZero() {
		head = append(head, [2]string{"Date due", date(inv.DueDate)})
	}
	if !inv.PaidAt.IsZero() {
		head = append(head, [2]string{"Paid on", date(inv.PaidAt)})
	}
	head = append(head, [2]string{"Status", string(inv.Status)})
	for _, h := range head {
		pdf.SetFont("go", "", 9)
		pdf.CellFormat(40, 5, h[0], "", 0, "L", false, 0, "")
		pdf.SetFont("go", "B", 9)
		pdf.CellFormat(width-40, 5, h[1], "", 1, "L", false, 0, "")
	}
	pdf.Ln(4)
	text("B", 9, 5, "Bill to")
	a := inv.CustomerAddress
	for _, s := range []string{inv.CustomerName, a.Line1, a.Line2, strings.TrimSpace(a.PostalCode + " " + a.City), a.State, a.Country, inv.CustomerEmail} {
		if s != "" {
			text("", 9, 5, s)
		}
	}
	pdf.Ln(6)
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
		pdf.MultiCell(description, 5, l.Description, "", "L", false)
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
	for _, s := range sums {
		style := ""
		if s[0] == "Total" || s[0] == "Amount due" {
			style = "B"
		}
		pdf.SetFont("go", style, 9)
		pdf.CellFormat(description+quantity, 6, s[0], "", 0, "R", false, 0, "")
		pdf.CellFormat(amount, 6, s[1], "", 1, "R", false, 0, "")
	}
	if inv.Status == billing.InvoiceVoid {
		pdf.Ln(4)
		text("B", 12, 7, "VOID")
	}
	var buf bytes.Buffer
	if err := pdf.Output(&buf); err != nil {
		return nil, fmt.Errorf("writing the PDF of invoice %s: %w", inv.Number, err)
	}
	return buf.Bytes(), nil
}
