@echo off
rem Starts the sandbox, and keeps this window open with what it says.
pushd "%~dp0"
if not exist wxopenid.exe echo Extract the whole archive first, then start sandbox.cmd in the folder wxopenid.
wxopenid.exe -sandbox
pause
