// object: changes of a pseudo-terminal's window, told to the group in its foreground (SIGWINCH)
// status: captured
#include "terminal.h"

static volatile sig_atomic_t changes;

static void count(int signal) {
    (void)signal;
    changes++;
}

int main(void) {
    struct pair pair = open_pair();
    if (fork() == 0) {
        setsid();
        int tty = open(pair.name, O_RDWR);
        signal(SIGWINCH, count);
        put(tty, "r", 1);
        int seen = 0;
        for (;;) {
            if (changes != seen) {
                seen = changes;
                struct winsize window;
                CHECK(!ioctl(tty, TIOCGWINSZ, &window));
                char text[32];
                put(tty, text, snprintf(text, sizeof text, "%d %d;", seen, window.ws_row));
            }
            usleep(500);
        }
    }
    expect(pair.master, "r", 1);
    ready();
    int round = 0, more;
    do {
        more = go_on();
        round++;
        struct winsize window = {(unsigned short)(round % 1000 + 1), 80, 0, 0};
        CHECK(!ioctl(pair.master, TIOCSWINSZ, &window));
        char text[32];
        expect(pair.master, text, snprintf(text, sizeof text, "%d %d;", round, window.ws_row));
    } while (more);
    PASS();
}
