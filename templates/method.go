package templates

import (
	"cmp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// brands are the networks' own spellings of what providers write in lower
// case.
var brands = map[string]string{
	"visa": "Visa", "mastercard": "Mastercard", "amex": "American Express", "discover": "Discover", "diners": "Diners Club",
	"jcb": "JCB", "unionpay": "UnionPay", "cartes_bancaires": "Cartes Bancaires", "eftpos_au": "eftpos", "link": "Link",
}

// wallets and schemes are names that are the same in every language.
var (
	wallets = map[string]string{
		"apple_pay": "Apple Pay", "google_pay": "Google Pay", "samsung_pay": "Samsung Pay", "link": "Link",
		"amex_express_checkout": "Amex Express Checkout", "masterpass": "Masterpass", "visa_checkout": "Visa Checkout",
	}
	schemes = map[string]string{
		"link": "Link", "paypal": "PayPal", "amazon_pay": "Amazon Pay", "cashapp": "Cash App Pay", "revolut_pay": "Revolut Pay",
		"klarna": "Klarna", "ideal": "iDEAL", "bancontact": "Bancontact", "eps": "EPS", "p24": "Przelewy24", "alipay": "Alipay",
		"wechat_pay": "WeChat Pay", "twint": "TWINT", "blik": "BLIK", "swish": "Swish", "mobilepay": "MobilePay", "giropay": "giropay",
		"sofort": "Sofort", "grabpay": "GrabPay", "kakao_pay": "Kakao Pay", "naver_pay": "Naver Pay", "payco": "PAYCO", "pix": "Pix",
		"boleto": "Boleto", "oxxo": "OXXO", "konbini": "Konbini", "multibanco": "Multibanco", "paynow": "PayNow", "promptpay": "PromptPay",
		"fpx": "FPX", "afterpay_clearpay": "Afterpay", "mb_way": "MB WAY", "samsung_pay": "Samsung Pay",
	}
)

// bankTypes are the types that have words of their own in the catalogue.
var bankTypes = []string{"sepa_debit", "us_bank_account", "bacs_debit", "acss_debit", "au_becs_debit", "nz_bank_account"}

// method writes how a payment method is called in a sentence: by what tells it
// from the customer's others, and no more.
func (l *local) method(b *strings.Builder, m billing.PaymentMethod, html bool) error {
	brand, email := cmp.Or(brands[strings.ToLower(m.Brand)], m.Brand), MaskEmail(m.Email)
	var key string
	plain := "_plain"
	switch {
	case m.Type == "card" && m.Wallet != "":
		key = "method.wallet"
		if brand == "" {
			key = "method.wallet_unbranded"
		}
	case m.Type == "card" && brand == "":
		key = "method.card_unbranded"
	case m.Type == "card":
		key = "method.card"
	case m.Type == "customer_balance":
		key, plain = "method.transfer", ""
	case m.Type != "" && known(m.Type, "", bankTypes...) != "":
		key = "method." + m.Type
	case m.Type == "" || !letters(m.Type):
		key = "method.other"
	case email != "":
		key, plain = "method.named_email", ""
	default:
		key = "method.named"
	}
	if m.Last4 == "" {
		key += plain
	}
	s, err := l.say(key, html, "brand", brand, "last", m.Last4, "email", email,
		"name", cmp.Or(schemes[m.Type], asWords(m.Type)), "wallet", cmp.Or(wallets[m.Wallet], asWords(m.Wallet)))
	if err != nil {
		return err
	}
	b.WriteString(s)
	return nil
}

// letters reports whether a type has a letter to be read.
func letters(s string) bool { return strings.ContainsFunc(s, unicode.IsLetter) }

// asWords makes words of a provider's name for something that this build does
// not know: "new_thing" becomes "New thing".
func asWords(s string) string {
	s = strings.TrimSpace(strings.ReplaceAll(s, "_", " "))
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return ""
	}
	return string(unicode.ToUpper(r)) + s[n:]
}

// MaskEmail is as much of an e-mail address as tells those apart who know each
// other: "a•••@example.com". "" where s is no address.
func MaskEmail(s string) string {
	name, domain, ok := strings.Cut(s, "@")
	if !ok || name == "" {
		return ""
	}
	_, n := utf8.DecodeRuneInString(name)
	return name[:n] + "•••@" + domain
}
