package templates

import (
	"slices"
	"strconv"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Page is everything that a page is drawn from: the frame that all pages
// share and one Body, whose type chooses the template. A page is a pure
// function of it and of the locale.
type Page struct {
	// Section is the navigation entry that is current: "overview", "plan",
	// "payment", "invoices", "usage", or "" on pages outside the navigation.
	Section string
	// BackTo replaces the navigation on decision pages ("← Back to plan"), so
	// that the choice stands alone: a Section, or "" to show the navigation.
	BackTo string
	// SignedIn is false on entry, signed-out and some error pages: no
	// navigation, no sign-out.
	SignedIn bool
	// Customer is the name the account goes by, for the frame.
	Customer string
	// ReturnURL leads back to the vendor's app (already checked against the
	// allow-list), or "".
	ReturnURL string
	// CancelURL is the footer's "Cancel plan", or "" where there is nothing to
	// cancel.
	CancelURL string
	Banner    *Banner
	// AsOf is the provider's time of the data shown; zero where nothing from
	// the provider is shown. Stale marks data from before an outage.
	AsOf  time.Time
	Stale bool
	// RefreshHref reads the page's data anew ("As of 14:05. Refresh"), or "".
	RefreshHref string
	// Failed are the sections of the account that could not be read. The part
	// sectionFailure stands in their place: never a zero, never "none yet".
	Failed []billing.Section
	// Usage and Balance say that there is such a page for this person: in the
	// navigation, and beside the balance.
	Usage, Balance bool
	// Support marks the page of the vendor's own staff, nil on a customer's.
	Support *Support
	// RequestID is printed on message pages for support, "" to leave it out.
	RequestID string
	Body      any
}

// Missing reports whether a section of the account could not be read.
func (p *Page) Missing(section string) bool {
	return slices.Contains(p.Failed, billing.Section(section))
}

// Current reports whether all that is on the page but one section is current.
func (p *Page) Current() bool { return !p.Stale && len(p.Failed) < 2 }

// Support is the ribbon over every page that the vendor's staff looks at.
type Support struct {
	Staff    string // who looks: name, e-mail or id
	Customer string // whose billing it is
	Ends     time.Time
}

// Banner is the one banner above the h1.
type Banner struct {
	// Kind: "past_due", "processing" (a payment that takes days is on its way),
	// "action_needed" (a change waits for the bank), "checking", "ending",
	// "trial", "stale".
	Kind string
	// Which members count depends on Kind; zero values are left out.
	Amount   billing.Money
	Date     time.Time // due since, ends on, waits until, trial ends, shown from
	Plan     string
	Method   *billing.PaymentMethod
	Href     string // of the banner's action
	Provider string
	// Sums are what is past due, or on its way, per currency; Count is how many
	// invoices that is. The other members of "past_due" are about the oldest:
	// Reason is why its payment failed and Retry when the provider tries again
	// by itself, both where known; ByHand is set where the customer pays it by
	// hand.
	Sums   []billing.Money
	Count  int
	Reason string
	Retry  time.Time
	ByHand bool
	// May is false where this person cannot pay: the action then only shows.
	May bool
	// AddHref and Drop are further actions of "action_needed": another card, and
	// dropping the change.
	AddHref string
	Drop    *Form
	// Beside is set where the page has a primary button of its own.
	Beside bool
}

// Permit says whether the customer may do a thing, and why not.
type Permit struct {
	Allowed bool
	// Why is a reason to show where not allowed: "role" (a viewer),
	// "policy", "busy" (another change is being checked), "scheduled" (the
	// vendor scheduled a change), "none" (nothing to do it with).
	Why string
	// Text is the vendor's own sentence for Why "policy", or "".
	Text string
}

// Overview is /.
type Overview struct {
	Customer billing.Customer
	// Subscriptions that are not ended, one card each; the most urgent ones
	// where there are many.
	Subscriptions []Subscription
	// All is how many there are where not all are shown, else 0.
	All           int
	Next          []NextPayment
	Method        *billing.PaymentMethod // that pays, nil where there is none
	Invoices      []billing.Invoice      // the latest three
	SeeInvoices   bool                   // reading them is not denied
	SeePlans      bool                   // plans can be looked at
	UpdateMethod  Permit
	UpdateDetails Permit
}

// Subscriptions is /subscriptions: a page of all plans of a customer with many.
type Subscriptions struct {
	Subscriptions []Subscription
	// From and To count from 1; All is how many there are.
	From, To, All    int
	BackHref, OnHref string // of the pages on both sides, or ""
}

// Subscription is a subscription's card.
type Subscription struct {
	ID       string
	PlanName string
	// Status is the status in the page's words: "active", "trial",
	// "past_due", "ending", "waiting" (a change waits for payment),
	// "checking", "paused", "unpaid", "incomplete", "ended".
	Status                 string
	Price                  billing.Price // of the first item
	Quantity               int64
	Total                  billing.Money // price times quantity per period, without tax
	MoreItems              int           // further items with a price of their own that usage does not set
	Metered                bool          // some item is billed by usage
	PeriodEnd              time.Time
	TrialEnd               time.Time
	Ends                   time.Time
	Pending                *billing.PendingUpdate
	PendingPlan            string // plan name of the pending update
	Features               []string
	Limits                 []billing.Limit
	PlanHref, CancelHref   string
	Change, Cancel, Resume Permit
	// ResumeForm is the form of the [Keep plan] button.
	ResumeForm Form
}

// NextPayment is an upcoming invoice with what pays it.
type NextPayment struct {
	billing.Upcoming
	PlanName string
	Method   *billing.PaymentMethod
	// Kind changes the label: "next", "first" (after a trial), "invoice"
	// (sent, paid by hand).
	Kind string
}

// Form carries what every posting form carries.
type Form struct {
	Action string // URL to post to
	Nonce  string // one nonce, one intent
	// Version is the object version that the page was drawn from.
	Version string
	// Hidden are further fields.
	Hidden []Field
}

// Field is a name and a value.
type Field struct{ Name, Value string }

// FieldError is a message at a form field. Key is a message key under
// "error.field."; Args its placeholders: "required", "invalid", "too_long"
// (count), "name", "email", "phone", "line1", "city", "postal_code",
// "country", "state", "postal_code_form" (example), "field_name",
// "field_value", "field_twice", "tax_id" (name, example), "tax_id_type",
// "tax_id_refused", "quantity", "quantity_min" (min), "quantity_max" (max), "price",
// "same". Another key is shown as "invalid".
type FieldError struct {
	Field string // the input's id
	Key   string
	Args  map[string]any
}

// Plan is /plan: the current subscription and what it can change to.
type Plan struct {
	Subscription *Subscription // nil: no subscription, only the list
	// Others are further subscriptions, to switch to (?subscription=).
	Others []Subscription
	// Intervals that are offered in the subscription's currency, for the
	// switch; Interval is the one shown.
	Intervals []PlanInterval
	Offers    []Offer
	// Choose is posted with price and quantity to get a preview.
	Choose   Form
	Quantity QuantityField
	Errors   []FieldError
	// Why is set where nothing can be changed at all.
	Change Permit
}

// PlanInterval is a choice of the interval switch.
type PlanInterval struct {
	Interval billing.Interval
	Count    int
	Current  bool // shown now
	Href     string
}

// QuantityField bounds the quantity.
type QuantityField struct {
	Value    string // as entered, so that a wrong entry is shown again
	Min, Max int64  // Max 0: no bound
	Show     bool
	// Price is what the quantity's own button asks for: the current plan's
	// price for the interval shown. "" hides the button.
	Price string
}

// Offer is a plan card.
type Offer struct {
	Key      string
	Name     string
	Text     string
	Price    billing.Price
	Quantity int64         // that the customer would have of it, 0 without a plan
	Total    billing.Money // price times Quantity
	Current  bool
	Features []string
	Limits   []billing.Limit
	// Direction: "upgrade", "downgrade", "crossgrade", "interval_longer",
	// "interval_shorter", "mixed", "quantity_up", "quantity_down", "".
	Direction string
	Permit    Permit
	// PerUnit is set where more than one of the price can be had.
	PerUnit bool
	// Gains and Losses are features, Changes limits, compared with the current
	// plan.
	Gains, Losses []string
	Changes       []LimitChange
}

// LimitChange is a limit that is not the same in two plans.
type LimitChange struct {
	Name     string
	From, To int64
	// Added and Removed mark a limit that only the new plan states, or only
	// the old one. Which of the two is more is the vendor's to say.
	Added, Removed bool
}

// Preview is /check/{nonce}: what a change costs, and the button that does
// it.
type Preview struct {
	Preview       billing.Preview
	FromPlan      string
	ToPlan        string
	From, To      PriceQuantity
	SamePlan      bool // only quantity or interval changes
	Gains, Losses []string
	Changes       []LimitChange
	// Names are plans by price id, for lines that the provider words itself.
	Names       map[string]string
	Method      *billing.PaymentMethod
	NeedsMethod bool // something is due and nothing pays it
	Confirm     Form
	BackHref    string
	// Moved is set where the numbers changed since the customer saw them;
	// Before is what was due then.
	Moved  bool
	Before billing.Money
	Permit Permit
	// AddMethodHref is where NeedsMethod leads to. Default: PathAddMethod.
	AddMethodHref string
	// Invoiced is set where the customer pays invoices by hand: the button
	// then speaks of an invoice, due on InvoiceDue (zero: not known yet).
	Invoiced   bool
	InvoiceDue time.Time
}

// PriceQuantity is a price and how many of it.
type PriceQuantity struct {
	Price    billing.Price
	Quantity int64
	Total    billing.Money
}

// Receipt is /done/{intent}: how an action went. Bookmarkable.
type Receipt struct {
	// State: "done", "waiting" (for the customer's payment or confirmation),
	// "processing", "checking", "partly" (some of several invoices are paid),
	// "refused", "not_applied", "manual".
	State string
	// Kind is the action; Params of the sentence in the other members.
	Kind      billing.ActionKind
	Reference string
	Time      time.Time
	PlanName  string // new plan, or the plan cancelled
	FromPlan  string
	Quantity  int64
	SamePlan  bool
	Paid      *billing.Money
	Credited  *billing.Money
	Effective time.Time // when it takes or took effect
	Next      *billing.Upcoming
	Invoice   *billing.Invoice
	Method    *billing.PaymentMethod
	// Differs is set where the charge differs from the preview.
	Differs  bool
	Expected billing.Money
	// Reason is a code where State is waiting or refused: "card_declined", …
	Reason string
	Until  time.Time
	// GoHref continues at the provider (waiting).
	GoHref        string
	AddMethodHref string
	Drop          *Form // "Drop this change"
	Undo          *Form // "Keep Team after all"
	UndoUntil     time.Time
	Check         *Form // "Check again"
	// StateHref answers {"state": "checking"}: while State is "checking" a
	// script asks there whether it still is. "" for no script.
	StateHref string
	RetryHref string
	Provider  string
	Sent      time.Time
	// Amount is the sum that State "waiting", "processing", "checking" or
	// "refused" speaks of, nil where no money is in it.
	Amount *billing.Money
	// Permit says why this person cannot go on with it, where Why is set.
	Permit Permit
	// Use is what an added method is for. Payments are the invoices of a payment,
	// or of a method that was added to pay them; PaidCount of them are paid.
	Use       billing.Use
	Payments  []PaidInvoice
	PaidCount int
	// Closed is set where what did not work is not owed any more: it must not be
	// said that nothing was charged.
	Closed bool
	// Active is the plan that is active again because of it, or "".
	Active string
}

// Cancel is /cancel.
type Cancel struct {
	Subscription Subscription
	Confirm      Form
	KeepHref     string
	Permit       Permit
}

// Payment is /payment.
type Payment struct {
	Methods       []Method
	Add           Permit
	AddHref       string
	Customer      billing.Customer
	UpdateDetails Permit
	UpdateTaxIDs  Permit
	// Renews is when the next plan renews that nothing pays for, where there is
	// no method.
	Renews time.Time
	// Waits are what changes wait for: paid at once with what becomes the default.
	Waits []billing.Money
}

// Method is a payment method with what it pays for.
type Method struct {
	billing.PaymentMethod
	Default bool
	PaysFor []PaysFor
	// Expiry: "expired", "this_month", "next_month" or "".
	Expiry string
	// BeforeNext is set where it expires before its next payment.
	BeforeNext  bool
	MakeDefault *Form
	// UseHref and RemoveHref lead to what it shall pay for and to its removal,
	// or are "".
	UseHref, RemoveHref string
}

// PaysFor is a plan that a method pays for.
type PaysFor struct {
	Plan string
	Next time.Time // next payment of it, zero where not known
	Own  bool      // the plan has this method as its own, whatever the default is
}

// AddMethod is /payment/add: says where the customer is about to go.
type AddMethod struct {
	Provider   string
	Confirm    Form
	Unfinished bool // came back without finishing
	// Plans are the subscriptions that it can pay for alone; Choose is set where
	// there is a choice of what it is for. Use is what is chosen.
	Choose bool
	Plans  []PlanChoice
	Use    string
	// Pays is what is paid with it at once, nil where nothing is; Count are the
	// invoices. Moved is set where that is another sum than the one that was
	// agreed to, Before.
	Pays   *billing.Money
	Count  int
	Moved  bool
	Before billing.Money
	// StayHref is where "Stay here" leads. Default: PathPayment.
	StayHref string
	// Waits are what changes wait for: paid at once with what becomes the default.
	Waits []billing.Money
}

// Devices is /devices: where the account is signed in.
type Devices struct {
	// Devices begin with the one that looks. A person who may not end other
	// people's sessions sees no other.
	Devices []Device
	EndAll  *Form // "Sign out everywhere", nil where the person may not
	Ended   bool  // a device was just signed out
}

// Device is a session on that page.
type Device struct {
	Browser, System string // "" where not known
	Person          string // who signed in, "" where not known
	Support         bool   // one of the vendor's staff, who only look
	Since, Seen     time.Time
	This            bool // the session that looks
	End             Form
}

// Leave is the page that forwards to another origin.
type Leave struct {
	Provider string // "" for the vendor's app
	Href     string
}

// Details is /details/{section}.
type Details struct {
	Section   string // "name", "email", "phone", "address", "invoice-fields", "language"
	Values    billing.Customer
	Countries []Country
	// Address are the inputs of "address", in the order of the country.
	Address []AddressInput
	// Switched is set where another country was chosen, and nothing was saved:
	// its inputs are to be looked at first.
	Switched bool
	// PurchaseOrder and Fields are what "invoice-fields" shows, empty rows too.
	PurchaseOrder string
	Fields        []billing.InvoiceField
	Languages     []Language
	Confirm       Form
	Errors        []FieldError
	Permit        Permit
}

// AddressInput is an input of an address form.
type AddressInput struct {
	Name         string // of the field
	Label        string // a message key under "field."
	Autocomplete string
	Value        string
	Required     bool
	Example      string // a value as the country writes it, or ""
	// Regions are the values to choose from; none for a free text.
	Regions []billing.AddressRegion
}

// Country is a choice in the address form.
type Country struct{ Code, Name string }

// Language is a choice for the language of invoices, by its own name.
type Language struct{ Tag, Name string }

// InvoiceFieldInputs are the names of the two inputs of row n, from 0, of the
// fields that are printed on invoices.
func InvoiceFieldInputs(n int) (name, value string) {
	row := strconv.Itoa(n + 1)
	return "field_name_" + row, "field_value_" + row
}

// TaxIDs is /details/tax-ids, and /tax-id/{id} where one is being changed.
type TaxIDs struct {
	IDs []billing.TaxID
	// Editing is the one that is replaced or removed, or nil.
	Editing *billing.TaxID
	// Own are the choices of the customer's country, Others those of all
	// countries.
	Own, Others []TaxIDChoice
	Choice      string // the choice that is made
	Value       string // as entered
	Confirm     Form
	Remove      Form // of Editing
	Errors      []FieldError
	Permit      Permit
}

// TaxIDChoice is a type of tax id in one country.
type TaxIDChoice struct {
	Value   string // of the choice
	Country string // ISO 3166-1, or ""
	Name    string
}

// Enter is the interstitial: names the account, one button.
type Enter struct {
	Name  string // the customer's name, or "" where it is not known
	ID    string // the customer's id, shown where there is no Name
	Token string
	// Replaces is set where this browser is signed in as another customer.
	Replaces bool
}

// Message is a page with a text and one way on: link errors, signed out,
// errors. Kind is a message key under "message.": "link_used",
// "link_expired", "link_invalid", "link_too_soon", "signed_out",
// "session_ended", "not_found", "forbidden", "denied", "view_denied"
// (nobody may read it), "view_denied_role" (an owner may), "changed",
// "busy", "bad_request", "too_large", "method_not_allowed", "too_many",
// "error", "unavailable", "provider_down", "provider_down_nothing_sent",
// "not_signed_in" (a first visit, without a link),
// "sign_out_failed" (the store did not take it),
// "document_not_ready", "document_failed", "zip_most" (Count), "zip_busy", "zip_empty" (downloads),
// "unavailable_change" (a change was sent, and how it stands cannot be read), "form_aged", "refused" (by the provider, before anything was tried).
type Message struct {
	Kind     string
	Status   int
	Text     string // the vendor's own sentence (denied)
	Seconds  int    // link_too_soon, too_many
	Count    int    // zip_most: how many a file takes
	Provider string
	// Href and Link name the way on: Link is a message key under "link.":
	// "vendor", "overview", "plan", "payment", "invoices", "receipt", "retry", "continue".
	Href, Link string
}

// Where the pages' own links lead. Package pages serves these paths.
const (
	PathOverview  = "/"
	PathPlan      = "/plan"
	PathPayment   = "/payment"
	PathInvoices  = "/invoices"
	PathAddMethod = "/payment/add"
	PathDetails   = "/details/" // + "name", "email", "phone", "address", "invoice-fields", "language"
	PathTaxIDs    = "/details/tax-ids"
	PathTaxID     = "/tax-id/"  // + id
	PathEnter     = "/enter"    // GET with FieldToken in the query; POST with it in the form
	PathSignOut   = "/sign-out" // POST
	PathDevices   = "/devices"
	PathPlans     = "/subscriptions"
	PathAssets    = "/assets/" // + a name from Renderer.AssetPath
)

// The names of form fields. A Form's Hidden fields come in addition.
const (
	FieldNonce    = "nonce"
	FieldVersion  = "version"
	FieldToken    = "token"    // Enter
	FieldPrice    = "price"    // Plan: the price id, on the card's button
	FieldQuantity = "quantity" // Plan
	// The fields of Details, which are also the ids of its inputs.
	FieldName       = "name"
	FieldEmail      = "email"
	FieldPhone      = "phone"
	FieldLine1      = "line1"
	FieldLine2      = "line2"
	FieldCity       = "city"
	FieldState      = "state"
	FieldPostalCode = "postal_code"
	FieldCountry    = "country"
	// FieldFormCountry is the country whose inputs the address form shows.
	FieldFormCountry   = "form_country"
	FieldPurchaseOrder = "purchase_order"
	FieldLocale        = "locale"
	// The fields of TaxIDs.
	FieldTaxIDType  = "tax_id_type"
	FieldTaxIDValue = "tax_id_value"
	FieldRemove     = "remove"
)
