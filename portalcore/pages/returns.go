package pages

// ReturnTo checks the URLs in the vendor's app that the portal may lead back
// to, and returns the rule that says whether another URL leads to one of their
// origins.
func ReturnTo(urls []string) (allowed func(string) bool, err error) {
	origins, err := returnOrigins(urls)
	if err != nil {
		return nil, err
	}
	return func(s string) bool { return allowedReturn(s, origins) }, nil
}

// ReturnURL is where the provider's pages lead back to, for an intent.
func ReturnURL(origin, intent string) string { return origin + pathReturn + intent }
