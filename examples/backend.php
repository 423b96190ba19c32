<?php

// A back end for mini program login. PHP 8 with curl: PHP_CLI_SERVER_WORKERS=8 php -S 127.0.0.1:3000 backend.php

/**
 * Returns the status and the JSON object to answer with. Below 400 the object has the openid.
 * $headers are those of the mini program's request, with their names in lower case.
 */
function askWxopenid(string $code, array $headers): array
{
    $id = ($headers['x-request-id'] ?? '') ?: bin2hex(random_bytes(16));
    $curl = curl_init((getenv('WXOPENID_URL') ?: 'http://127.0.0.1:2020') . '/openid');
    curl_setopt_array($curl, [
        CURLOPT_POSTFIELDS => json_encode(['code' => $code]),
        CURLOPT_HTTPHEADER => [
            'Content-Type: application/json',
            'Referer: ' . ($headers['referer'] ?? ''),
            'X-Request-Id: ' . $id,
        ],
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 8, // seconds, between WX_TIMEOUT (5 s) and what openid.js waits (10 s)
        CURLOPT_PROXY => '', // none, whatever http_proxy says
    ]);
    $json = curl_exec($curl);
    $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
    $answer = json_decode((string) $json);
    if (!is_object($answer) || $status < 400 && empty($answer->openid)) {
        error_log($id . ' ' . (curl_error($curl) ?: "wxopenid answered $status without an openid or an error"));
        $status = 502;
        $answer = (object) ['error' => 'wxopenid_unreachable'];
    }
    error_log($id . ' ' . $status . ' ' . ($status < 400 ? 'ok' : json_encode($answer->error ?? null)));
    return [$status, $answer];
}

$status = 400;
$answer = ['error' => 'invalid_request'];
$code = json_decode(file_get_contents('php://input'))->code ?? null;
if (is_string($code) && $code !== '') {
    [$status, $answer] = askWxopenid($code, array_change_key_case(getallheaders()));
}
if ($status < 400) {
    // Store in your database that this token belongs to the user with $answer->openid.
    $answer = ['token' => bin2hex(random_bytes(16))];
}
http_response_code($status);
header('Content-Type: application/json');
echo json_encode($answer);
