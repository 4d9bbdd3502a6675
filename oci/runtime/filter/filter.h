// What Go calls of filter.c.

// filter_adopt maps a file that filter_capture made; exports that match it take what they write from there.
void filter_adopt(int fd);

// filter_capture has the next export write a file to fd, and then fail, so that nobody loads its filter.
void filter_capture(int fd);

// filter_captured tells whether that file is whole, and has exports work again.
int filter_captured(void);
