// Says what a function returns and how often it was asked: to a connection, or, without a port, on its standard output.
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static unsigned long asked;

#ifdef FIXED
__attribute__((noinline)) static int value(void) { return 2; }
#else
__attribute__((noinline)) static int value(void) { return 1; }
#endif

static void serve(int in, int out) {
    char byte, line[64];
    while (read(in, &byte, 1) == 1) {
        int length = snprintf(line, sizeof line, "%d %lu\n", value(), ++asked);
        if (write(out, line, length) != length) return;
    }
}

int main(int count, char **words) {
    if (count < 2) {
        serve(0, 1);
        return 0;
    }
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8)) return 1;
    for (;;) {
        int client = accept(listener, 0, 0);
        if (client < 0) continue;
        serve(client, client);
        close(client);
    }
}
