package billing

import (
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"
)

// TaxIDType is one kind of tax id in one country.
type TaxIDType struct {
	Type    string // as Stripe names it: "eu_vat"
	Country string // whose it is, ISO 3166-1; "" for eu_oss_vat, which is no country's
	Name    string // "German VAT number"
	Example string // in the form that the provider takes
	// Pattern is what the id looks like without spaces, dots, dashes and
	// slashes. It is looser than the office's own rules: the provider is the
	// judge, this only finds slips of the pen.
	Pattern string
}

// MaxTaxID is the longest tax id that is looked at, in bytes.
const MaxTaxID = 64

// TaxIDTypes lists the types of a country (ISO 3166-1 alpha-2), the usual one
// first, or all of them for "". Nil where there is none.
func TaxIDTypes(country string) []TaxIDType {
	var list []TaxIDType
	for _, t := range taxIDTypes {
		if country == "" || t.Country == country {
			list = append(list, t)
		}
	}
	return list
}

// CheckTaxID reports whether value looks like a tax id of that type, of any
// country that has it, and returns it in the form to send: upper case, without
// the spaces, dots and dashes that ids of the type do not have, and with those
// of the type's example where it has some and value had none. It says nothing
// about whether the id exists.
func CheckTaxID(typ, value string) (string, bool) {
	if len(value) > MaxTaxID || !utf8.ValidString(value) {
		return "", false
	}
	value = strings.ToUpper(strings.TrimSpace(value))
	bare := bareTaxID.Replace(value)
	for i, re := range taxIDPatterns() {
		t := taxIDTypes[i]
		if t.Type != typ || !re.MatchString(bare) {
			continue
		}
		switch {
		case bareTaxID.Replace(t.Example) == t.Example:
			return bare, true
		case bare == value:
			return likeExample(bare, t.Example), true
		}
		return strings.Join(strings.Fields(dashes.Replace(value)), " "), true
	}
	return "", false
}

// TaxIDCountry is the country that a tax id of that type belongs to, "" where
// the type does not say.
func TaxIDCountry(typ, value string) string {
	switch {
	case typ == "eu_vat" && len(value) >= 2:
		switch prefix := value[:2]; prefix {
		case "EL":
			return "GR"
		case "XI":
			return "GB"
		default:
			return prefix
		}
	case typ == "eu_oss_vat", typ == "unknown", len(typ) < 3 || typ[2] != '_':
		return ""
	case typ == "ic_nif": // the Canary Islands
		return "ES"
	}
	return strings.ToUpper(typ[:2])
}

var (
	// Hyphens, dashes and spaces that come along when an id is copied from a
	// letter count as plain ones.
	dashes    = strings.NewReplacer("\u2010", "-", "\u2011", "-", "\u2012", "-", "\u2013", "-", "\u2014", "-", "\u2212", "-")
	bareTaxID = strings.NewReplacer(" ", "", "\t", "", "\u00a0", "", "\u2009", "", "\u202f", "", ".", "", "-", "", "/", "",
		"\u2010", "", "\u2011", "", "\u2012", "", "\u2013", "", "\u2014", "", "\u2212", "")
	taxIDPatterns = sync.OnceValue(func() []*regexp.Regexp {
		list := make([]*regexp.Regexp, len(taxIDTypes))
		for i, t := range taxIDTypes {
			list[i] = regexp.MustCompile("^(?:" + t.Pattern + ")$")
		}
		return list
	})
)

// likeExample puts the example's separators into a bare id of the same length.
func likeExample(bare, example string) string {
	if len(bare) != len(bareTaxID.Replace(example)) {
		return bare
	}
	var b strings.Builder
	i := 0
	for _, r := range example {
		if strings.ContainsRune(" .-/", r) {
			b.WriteRune(r)
			continue
		}
		b.WriteByte(bare[i])
		i++
	}
	return b.String()
}

// The types of Stripe's API at the version that the Stripe adapter speaks,
// with the examples of its documentation
// (https://docs.stripe.com/billing/customer/tax-ids).
var taxIDTypes = []TaxIDType{
	{"ad_nrt", "AD", "Andorran NRT number", "A-123456-Z", `[A-Z][0-9]{6}[A-Z]`},
	{"ae_trn", "AE", "United Arab Emirates TRN", "123456789012345", `[0-9]{15}`},
	{"al_tin", "AL", "Albanian tax identification number", "J12345678N", `[A-Z][0-9]{8}[A-Z]`},
	{"am_tin", "AM", "Armenian tax identification number", "02538904", `[0-9]{8}`},
	{"ao_tin", "AO", "Angolan tax identification number", "5123456789", `[0-9]{9}[0-9A-Z]{1,5}`},
	{"ar_cuit", "AR", "Argentinian CUIT", "20-12345678-6", `[0-9]{11}`},
	{"eu_vat", "AT", "Austrian VAT number", "ATU12345678", `ATU[0-9]{8}`},
	{"au_abn", "AU", "Australian Business Number (ABN)", "12345678912", `[0-9]{11}`},
	{"au_arn", "AU", "Australian Taxation Office Reference Number (ARN)", "123456789123", `[0-9]{12}`},
	{"aw_tin", "AW", "Aruban tax identification number", "12345678", `[0-9]{7,8}`},
	{"az_tin", "AZ", "Azerbaijani tax identification number", "0123456789", `[0-9]{10}`},
	{"ba_tin", "BA", "Bosnian tax identification number", "123456789012", `[0-9]{12,13}`},
	{"bb_tin", "BB", "Barbadian tax identification number", "1123456789012", `[0-9]{13}`},
	{"bd_bin", "BD", "Bangladeshi business identification number", "123456789-0123", `[0-9]{13}`},
	{"eu_vat", "BE", "Belgian VAT number", "BE0123456789", `BE[0-9]{10}`},
	{"bf_ifu", "BF", "Burkinabe IFU", "12345678A", `[0-9]{8}[A-Z]`},
	{"eu_vat", "BG", "Bulgarian VAT number", "BG0123456789", `BG[0-9]{9,10}`},
	{"bg_uic", "BG", "Bulgarian unified identification code", "123456789", `[0-9]{9}([0-9]{4})?`},
	{"bh_vat", "BH", "Bahraini VAT number", "123456789012345", `[0-9]{15}`},
	{"bj_ifu", "BJ", "Beninese IFU", "1234567890123", `[0-9]{13}`},
	{"bo_tin", "BO", "Bolivian tax id", "123456789", `[0-9]{6,12}`},
	{"br_cnpj", "BR", "Brazilian CNPJ", "01.234.456/5432-10", `[0-9A-Z]{12}[0-9]{2}`},
	{"br_cpf", "BR", "Brazilian CPF", "123.456.789-87", `[0-9]{11}`},
	{"bs_tin", "BS", "Bahamian tax identification number", "123.456.789", `[0-9]{9}`},
	{"by_tin", "BY", "Belarusian TIN", "123456789", `[0-9A-Z]{9}`},
	{"ca_gst_hst", "CA", "Canadian GST/HST number", "123456789RT0002", `[0-9]{9}RT[0-9]{4}`},
	{"ca_bn", "CA", "Canadian business number", "123456789", `[0-9]{9}`},
	{"ca_qst", "CA", "Québec QST number", "1234567890TQ1234", `[0-9]{10}TQ[0-9]{4}`},
	{"ca_pst_bc", "CA", "British Columbia PST number", "PST-1234-5678", `PST[0-9]{8}`},
	{"ca_pst_mb", "CA", "Manitoba PST number", "123456-7", `[0-9]{7}`},
	{"ca_pst_sk", "CA", "Saskatchewan PST number", "1234567", `[0-9]{7}`},
	{"cd_nif", "CD", "Congolese (DR) tax identification number", "A0123456M", `[A-Z][0-9]{7}[A-Z]`},
	{"ch_vat", "CH", "Swiss VAT number", "CHE-123.456.789 MWST", `CHE[0-9]{9}(MWST|TVA|IVA)`},
	{"ch_uid", "CH", "Swiss UID", "CHE-123.456.789", `CHE[0-9]{9}`},
	{"cl_tin", "CL", "Chilean TIN", "12.345.678-K", `[0-9]{7,8}[0-9K]`},
	{"cm_niu", "CM", "Cameroonian NIU", "M123456789000L", `[A-Z][0-9]{12}[A-Z]`},
	{"cn_tin", "CN", "Chinese tax id", "123456789012345678", `[0-9A-Z]{15,20}`},
	{"co_nit", "CO", "Colombian NIT", "123.456.789-0", `[0-9]{9,10}`},
	{"cr_tin", "CR", "Costa Rican tax id", "1-234-567890", `[0-9]{9,12}`},
	{"cv_nif", "CV", "Cape Verdean NIF", "213456789", `[0-9]{9}`},
	{"eu_vat", "CY", "Cypriot VAT number", "CY12345678Z", `CY[0-9]{8}[A-Z]`},
	{"eu_vat", "CZ", "Czech VAT number", "CZ1234567890", `CZ[0-9]{8,10}`},
	{"eu_vat", "DE", "German VAT number", "DE123456789", `DE[0-9]{9}`},
	{"de_stn", "DE", "German tax number (Steuernummer)", "1234567890", `[0-9]{10,13}`},
	{"eu_vat", "DK", "Danish VAT number", "DK12345678", `DK[0-9]{8}`},
	{"do_rcn", "DO", "Dominican RCN", "123-4567890-1", `[0-9]{9}([0-9]{2})?`},
	{"ec_ruc", "EC", "Ecuadorian RUC", "1234567890001", `[0-9]{13}`},
	{"eu_vat", "EE", "Estonian VAT number", "EE123456789", `EE[0-9]{9}`},
	{"eg_tin", "EG", "Egyptian tax identification number", "123456789", `[0-9]{9}`},
	{"eu_vat", "ES", "Spanish VAT number", "ESA1234567Z", `ES[0-9A-Z][0-9]{7}[0-9A-Z]`},
	{"es_cif", "ES", "Spanish NIF (formerly CIF)", "A12345678", `[0-9A-Z][0-9]{7}[0-9A-Z]`},
	{"ic_nif", "ES", "Canary Islands NIF", "A12345678", `[0-9A-Z][0-9]{7}[0-9A-Z]`},
	{"et_tin", "ET", "Ethiopian tax identification number", "1234567890", `[0-9]{10}`},
	{"eu_vat", "FI", "Finnish VAT number", "FI12345678", `FI[0-9]{8}`},
	{"fo_vat", "FO", "Faroese VAT number", "123456", `[0-9]{6}`},
	{"eu_vat", "FR", "French VAT number", "FRAB123456789", `FR[0-9A-Z]{2}[0-9]{9}`},
	{"gb_vat", "GB", "United Kingdom VAT number", "GB123456789", `GB([0-9]{9}([0-9]{3})?|(GD|HA)[0-9]{3})`},
	{"eu_vat", "GB", "Northern Irish VAT number", "XI123456789", `XI([0-9]{9}([0-9]{3})?|(GD|HA)[0-9]{3})`},
	{"ge_vat", "GE", "Georgian VAT number", "123456789", `[0-9]{9}`},
	{"gi_tin", "GI", "Gibraltar tax identification number", "123456", `[0-9]{4,9}`},
	{"gn_nif", "GN", "Guinean NIF", "123456789", `[0-9]{9}`},
	{"eu_vat", "GR", "Greek VAT number", "EL123456789", `EL[0-9]{9}`},
	{"hk_br", "HK", "Hong Kong business registration number", "12345678", `[0-9]{8}`},
	{"eu_vat", "HR", "Croatian VAT number", "HR12345678912", `HR[0-9]{11}`},
	{"hr_oib", "HR", "Croatian personal identification number (OIB)", "12345678901", `[0-9]{11}`},
	{"eu_vat", "HU", "Hungarian VAT number", "HU12345678", `HU[0-9]{8}`},
	{"hu_tin", "HU", "Hungarian tax number (adószám)", "12345678-1-23", `[0-9]{11}`},
	{"id_npwp", "ID", "Indonesian NPWP", "012.345.678.9-012.345", `[0-9]{15,16}`},
	{"eu_vat", "IE", "Irish VAT number", "IE1234567AB", `IE[0-9][0-9A-Z+*][0-9]{5}[A-Z]{1,2}`},
	{"il_vat", "IL", "Israeli VAT number", "000012345", `[0-9]{9}`},
	{"in_gst", "IN", "Indian GST number", "12ABCDE3456FGZH", `[0-9]{2}[0-9A-Z]{13}`},
	{"is_vat", "IS", "Icelandic VAT number", "123456", `[0-9]{5,6}`},
	{"eu_vat", "IT", "Italian VAT number", "IT12345678912", `IT[0-9]{11}`},
	{"it_cf", "IT", "Italian codice fiscale", "RSSMRA80A01H501U", `[0-9A-Z]{16}|[0-9]{11}`},
	{"jp_cn", "JP", "Japanese corporate number", "1234567891234", `[0-9]{13}`},
	{"jp_rn", "JP", "Japanese registered foreign businesses' registration number", "12345", `[0-9]{5}`},
	{"jp_trn", "JP", "Japanese tax registration number", "T1234567891234", `T[0-9]{13}`},
	{"ke_pin", "KE", "Kenyan PIN", "P000111111A", `[A-Z][0-9]{9}[A-Z]`},
	{"kg_tin", "KG", "Kyrgyz tax identification number", "12345678901234", `[0-9]{14}`},
	{"kh_tin", "KH", "Cambodian tax identification number", "1001-123456789", `[0-9A-Z]{4}[0-9]{9}`},
	{"kr_brn", "KR", "Korean business registration number", "123-45-67890", `[0-9]{10}`},
	{"kz_bin", "KZ", "Kazakh business identification number", "123456789012", `[0-9]{12}`},
	{"la_tin", "LA", "Lao tax identification number", "123456789-000", `[0-9]{12}`},
	{"li_vat", "LI", "Liechtenstein VAT number", "12345", `[0-9]{5}`},
	{"li_uid", "LI", "Liechtenstein UID", "CHE123456789", `CHE[0-9]{9}`},
	{"lk_vat", "LK", "Sri Lankan VAT number", "123456789-7000", `[0-9]{9}([0-9]{4})?`},
	{"eu_vat", "LT", "Lithuanian VAT number", "LT123456789123", `LT[0-9]{9}([0-9]{3})?`},
	{"eu_vat", "LU", "Luxembourg VAT number", "LU12345678", `LU[0-9]{8}`},
	{"eu_vat", "LV", "Latvian VAT number", "LV12345678912", `LV[0-9]{11}`},
	{"ma_vat", "MA", "Moroccan VAT number", "12345678", `[0-9]{8,15}`},
	{"md_vat", "MD", "Moldovan VAT number", "1234567", `[0-9]{7}`},
	{"me_pib", "ME", "Montenegrin PIB", "12345678", `[0-9]{8}`},
	{"mk_vat", "MK", "North Macedonian VAT number", "MK1234567890123", `MK[0-9]{13}`},
	{"mr_nif", "MR", "Mauritanian NIF", "12345678", `[0-9]{8}`},
	{"eu_vat", "MT", "Maltese VAT number", "MT12345678", `MT[0-9]{8}`},
	{"mx_rfc", "MX", "Mexican RFC", "ABC010203AB9", `[A-ZÑ&]{3,4}[0-9]{6}[0-9A-Z]{3}`},
	{"my_sst", "MY", "Malaysian SST number", "A12-3456-78912345", `[A-Z][0-9]{14}`},
	{"my_itn", "MY", "Malaysian ITN", "C 1234567890", `[A-Z]{1,2}[0-9]{8,12}`},
	{"my_frp", "MY", "Malaysian FRP number", "12345678", `[0-9]{8}`},
	{"ng_tin", "NG", "Nigerian tax identification number", "12345678-0001", `[0-9]{12}`},
	{"eu_vat", "NL", "Dutch VAT number", "NL123456789B12", `NL[0-9]{9}B[0-9]{2}`},
	{"no_vat", "NO", "Norwegian VAT number", "123456789MVA", `[0-9]{9}MVA`},
	{"no_voec", "NO", "Norwegian VAT on e-commerce number", "1234567", `[0-9]{7}`},
	{"np_pan", "NP", "Nepalese PAN", "123456789", `[0-9]{9}`},
	{"nz_gst", "NZ", "New Zealand GST number", "123456789", `[0-9]{8,9}`},
	{"om_vat", "OM", "Omani VAT number", "OM1234567890", `OM[0-9]{10}`},
	{"pe_ruc", "PE", "Peruvian RUC", "12345678901", `[0-9]{11}`},
	{"ph_tin", "PH", "Philippine tax identification number", "123456789012", `[0-9]{9}([0-9]{3,5})?`},
	{"eu_vat", "PL", "Polish VAT number", "PL1234567890", `PL[0-9]{10}`},
	{"pl_nip", "PL", "Polish NIP", "1234567890", `[0-9]{10}`},
	{"eu_vat", "PT", "Portuguese VAT number", "PT123456789", `PT[0-9]{9}`},
	{"py_ruc", "PY", "Paraguayan RUC", "12345678-9", `[0-9]{6,9}`},
	{"eu_vat", "RO", "Romanian VAT number", "RO1234567891", `RO[0-9]{2,10}`},
	{"ro_tin", "RO", "Romanian tax id", "1234567890123", `[0-9]{2,13}`},
	{"rs_pib", "RS", "Serbian PIB", "123456789", `[0-9]{9}`},
	{"ru_inn", "RU", "Russian INN", "1234567891", `[0-9]{10}([0-9]{2})?`},
	{"ru_kpp", "RU", "Russian KPP", "123456789", `[0-9A-Z]{9}`},
	{"sa_vat", "SA", "Saudi Arabian VAT number", "123456789012345", `[0-9]{15}`},
	{"eu_vat", "SE", "Swedish VAT number", "SE123456789123", `SE[0-9]{12}`},
	{"sg_gst", "SG", "Singaporean GST number", "M12345678X", `[0-9A-Z]{9,10}`},
	{"sg_uen", "SG", "Singaporean UEN", "123456789F", `[0-9A-Z]{9,10}`},
	{"eu_vat", "SI", "Slovenian VAT number", "SI12345678", `SI[0-9]{8}`},
	{"si_tin", "SI", "Slovenian tax number", "12345678", `[0-9]{8}`},
	{"eu_vat", "SK", "Slovak VAT number", "SK1234567891", `SK[0-9]{10}`},
	{"sn_ninea", "SN", "Senegalese NINEA", "12345672A2", `[0-9]{7,9}[0-9A-Z]{0,3}`},
	{"sr_fin", "SR", "Surinamese FIN", "1234567890", `[0-9]{10}`},
	{"sv_nit", "SV", "Salvadoran NIT", "1234-567890-123-4", `[0-9]{14}`},
	{"th_vat", "TH", "Thai VAT number", "1234567891234", `[0-9]{13}`},
	{"tj_tin", "TJ", "Tajik tax identification number", "123456789", `[0-9]{9}`},
	{"tr_tin", "TR", "Turkish tax identification number", "0123456789", `[0-9]{10,11}`},
	{"tw_vat", "TW", "Taiwanese VAT number", "12345678", `[0-9]{8}`},
	{"tz_vat", "TZ", "Tanzanian VAT number", "12345678A", `[0-9]{8}[A-Z]`},
	{"ua_vat", "UA", "Ukrainian VAT number", "123456789", `[0-9]{9,12}`},
	{"ug_tin", "UG", "Ugandan tax identification number", "1014751879", `[0-9]{10}`},
	{"us_ein", "US", "United States EIN", "12-3456789", `[0-9]{9}`},
	{"uy_ruc", "UY", "Uruguayan RUC", "123456789012", `[0-9]{12}`},
	{"uz_vat", "UZ", "Uzbek VAT number", "123456789012", `[0-9]{12}`},
	{"uz_tin", "UZ", "Uzbek TIN", "123456789", `[0-9]{9}`},
	{"ve_rif", "VE", "Venezuelan RIF", "A-12345678-9", `[A-Z][0-9]{9}`},
	{"vn_tin", "VN", "Vietnamese tax id", "1234567890", `[0-9]{10}([0-9]{2,3})?`},
	{"za_vat", "ZA", "South African VAT number", "4123456789", `[0-9]{10}`},
	{"zm_tin", "ZM", "Zambian tax identification number", "1004751879", `[0-9]{10}`},
	{"zw_tin", "ZW", "Zimbabwean tax identification number", "1234567890", `[0-9]{10}`},
	{"eu_oss_vat", "", "European One Stop Shop VAT number (non-Union scheme)", "EU123456789", `EU[0-9]{9}`},
}
